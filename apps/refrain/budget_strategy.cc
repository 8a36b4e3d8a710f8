#include "apps/refrain/budget_strategy.h"

#include <fmt/format.h>

#include <charconv>

#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

constexpr std::string_view kPrefix = "budget:";

}  // namespace

plan::Budget parse_budget(const std::string& text, const std::string& what) {
  double fraction = 0.0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), fraction);
  if (error == std::errc() && rest == text.data() + text.size() && fraction >= 0.0 && fraction <= 1.0)
    return plan::Budget::of_fraction(fraction);
  try {
    return plan::Budget::of_bytes(parse_bytes(text));
  } catch (const InvalidArgument&) {
    throw InvalidArgument(fmt::format(
        "{} '{}': expected bytes, e.g. 400MiB, or a fraction from 0 to 1, e.g. 0.5; 0 is the lowest peak, 1 the "
        "baseline's",
        what, text));
  }
}

bool is_budget(const std::string& strategy) { return strategy.starts_with(kPrefix); }

plan::Budget budget_of(const std::string& strategy) {
  return parse_budget(strategy.substr(kPrefix.size()), fmt::format("strategy '{}': budget", strategy));
}

Budget as_budget(const plan::Budget& budget, Bytes level) {
  return budget.fraction < 0 ? Budget::bytes(level + budget.bytes) : Budget::fraction(budget.fraction);
}

void set_model_strategy(models::TrainableModel& model, const std::string& strategy) {
  if (is_budget(strategy)) budget_of(strategy);
  model.set_strategy(is_budget(strategy) ? "none" : strategy);
}

PlannedBudget plan_budget(const std::string& strategy, const std::function<void()>& step, const std::string& model) {
  const auto budget = budget_of(strategy);
  const Bytes level = memory_stats().current;
  const auto traced = profile(step, ProfileOptions().model(model));
  PlannedBudget planned{plan_step(traced, as_budget(budget, level)), level};
  if (!planned.plan.fits())
    throw InvalidArgument(
        fmt::format("strategy '{}' for model {}: does not fit; the lowest peak found is {} ({} bytes) over "
                    "the level before the step; raise the budget to that",
                    strategy, model, format_bytes(planned.peak()), planned.peak()));
  return planned;
}

}  // namespace refrain::cli
