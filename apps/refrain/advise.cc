#include <fmt/format.h>

#include <algorithm>

#include "apps/refrain/advise_text.h"
#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "apps/refrain/trials.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

/// A straight line from the batches tried; the step itself would not fit.
Bytes expected_peak(const MaxBatch& found, int64_t batch) {
  const Bytes resting = memory_stats().current;
  const auto per_example = found.batch > 0
                               ? static_cast<double>(found.next_peak - found.peak)
                               : static_cast<double>(found.next_peak - resting) / static_cast<double>(found.next_batch);
  return found.next_peak + static_cast<Bytes>(per_example * static_cast<double>(batch - found.next_batch));
}

/// @param timed_batch  set to the batch of the overheads: that asked for, or the largest that the baseline fits.
std::vector<Alternative> find_candidates(const AdviseArgs& args, models::TrainableModel& model, Trials& trials,
                                         int64_t batch, int64_t& timed_batch) {
  auto timed = plan_strategies(model, args.strategies);
  std::vector<MaxBatch> found;
  for (const auto& seen : timed) found.push_back(find_max_batch(trials, seen.strategy));
  check_any_fits(found, trials);
  timed_batch = std::clamp(found.front().batch, model.least_batch(), batch);
  model.set_batch(timed_batch);
  measure(model, model.synthetic_batch(args.model.seed), args.iters, 1, timed);
  model.set_batch(batch);

  std::vector<Alternative> all;
  for (size_t i = 0; i < timed.size(); ++i) {
    const bool fits = found[i].batch >= batch;
    const double overhead = median(timed[i].added_ms) / median(timed.front().step_ms);
    const auto trial = fits ? trials.run(timed[i].strategy, batch) : BatchTrial{.peak = expected_peak(found[i], batch)};
    all.push_back({.name = timed[i].strategy,
                   .fits = fits,
                   .peak = trial.peak,
                   .resident_peak = trial.resident_peak,
                   .overhead = overhead,
                   .max_batch = found[i].batch});
  }
  return all;
}

std::string show(const Situation& now, const std::vector<Alternative>& all, const Alternative& choice) {
  Table table({"strategy", fmt::format("peak at batch {}", now.batch), "resident", "fits",
               now.timed_batch == now.batch ? "overhead" : fmt::format("overhead at batch {}", now.timed_batch),
               "largest batch", ""});
  for (const auto& c : all) {
    table.add({c.name, (c.fits ? "" : "about ") + format_bytes(c.peak), c.fits ? format_bytes(c.resident_peak) : "-",
               c.fits ? "yes" : "no", fmt::format("{:.0f} %", 100 * c.overhead), fmt::format("{}", c.max_batch),
               &c == &choice ? "chosen" : ""});
  }
  return table.str();
}

Json candidate_json(const Alternative& c) {
  return {{"strategy", c.name},
          {"fits", c.fits},
          {"peak_bytes", c.peak},
          {"peak_is_predicted", !c.fits},
          {"resident_peak_bytes", c.fits ? Json(c.resident_peak) : Json()},
          {"overhead", c.overhead},
          {"max_batch", c.max_batch}};
}

}  // namespace

int run_advise(const AdviseArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  install_memory_tracking();
  const Bytes limit = parse_limit(args.memory_limit);
  auto model = build_model(args.model);
  const int64_t batch = model->options().batch;
  plan_strategies(*model, args.strategies);
  torch::manual_seed(args.model.seed);
  Trials trials(*model, args.optimizer, args.model.seed, limit);
  int64_t timed_batch = 0;
  const auto all = find_candidates(args, *model, trials, batch, timed_batch);
  const auto& choice = all[choose_alternative(all)];
  const Situation now{*model, batch, timed_batch, limit, trials.fixed_bytes(), args.optimizer};
  const auto reasons = reasons_for(now, all, choice);
  const std::string command = command_for(now, choice), code = code_for(*model, choice.name);

  Json candidates = Json::array();
  for (const auto& candidate : all) candidates.push_back(candidate_json(candidate));
  Json chosen = candidate_json(choice);
  chosen["batch"] = std::min(batch, choice.max_batch);
  chosen["command"] = command;
  chosen["code"] = code;
  Json config = config_json(*model);
  config["optimizer"] = args.optimizer;
  std::string text = fmt::format("{}, batch {}, {}, all tensors of a training step within {}\n{}", title(*model), batch,
                                 args.optimizer, format_bytes(limit), show(now, all, choice));
  for (const auto& reason : reasons) text += fmt::format("* {}\n", reason);
  Json document = document_json("advice", model->name(), config);
  document["limit_bytes"] = limit;
  document["fits_plainly"] = all.front().fits;
  document["timed_batch"] = timed_batch;
  document["choice"] = chosen;
  document["candidates"] = candidates;
  document["reasons"] = reasons;
  publish(document, fmt::format("{}\nTo run:\n  {}\nTo paste:\n{}\n", text, command, indented(code)), args.json,
          args.html);
  return kOk;
}

}  // namespace refrain::cli
