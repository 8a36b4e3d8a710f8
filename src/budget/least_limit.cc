#include "refrain/least_limit.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "evict/room_maker.h"
#include "memory/stack.h"
#include "refrain/memory.h"
#include "refrain/torch_error.h"

namespace refrain {
namespace {

void check(const LeastLimitOptions& options) {
  const auto refuse = [](const char* name, auto found, const char* expected) {
    throw InvalidArgument(fmt::format("[refrain::least_limit] `{}` is {}, expected {}", name, found, expected));
  };
  if (!(options.tolerance() > 0.0 && options.tolerance() < 1.0))
    refuse("tolerance", options.tolerance(), "a fraction above 0 and below 1");
  if (options.runs() < 1) refuse("runs", options.runs(), "at least 1");
  if (options.steps() < 1) refuse("steps", options.steps(), "at least 1");
  for (const double multiple : options.multiples())
    if (!(multiple >= 1.0)) refuse("multiples", multiple, "multiples of the lowest limit, each at least 1");
  install_memory_tracking();
  if (limiting_allocator().limit() != LimitingAllocator::kNoLimit)
    refuse("step", fmt::format("under a limit of {} already", format_bytes(limiting_allocator().limit())),
           "no cap, budget or limit around it");
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

class Search {
 public:
  Search(const std::function<void()>& step, const LeastLimitOptions& options) : step_(step), options_(options) {}

  LeastLimit run() {
    timed();  // allocates what outlives steps, such as an optimizer's state
    found_.level = memory_stats().current;
    std::vector<double> baseline;
    baseline.reserve(static_cast<size_t>(options_.runs()));
    for (int i = 0; i < options_.runs(); ++i) baseline.push_back(timed());
    found_.baseline_ms = median(baseline);
    found_.peak = find_peak();
    found_.limit = find_least();
    const auto least = cost_of_least();
    for (const auto limit : limits()) found_.costs.push_back(limit == found_.limit ? least : cost_of(limit));
    return std::move(found_);
  }

 private:
  // Under a cap it differs a little from that of the baseline: generator states, and what is copied before it is overwritten.
  Bytes find_peak() {
    const auto seen = try_steps(LimitingAllocator::kNoLimit - 1, options_.steps());
    return seen.cost.peak;
  }

  struct Trial {
    LimitCost cost;
    std::optional<Bytes> min_limit;  ///< if it does not fit
  };

  double timed() {
    const auto begin = std::chrono::steady_clock::now();
    ++found_.steps;
    step_();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  }

  // One cap, steps in a row; the cost is that of the last `options_.runs()` of them, without the first if there are
  // more.
  Trial try_steps(Bytes limit, int steps) {
    Trial trial{.cost = {.limit = limit}, .min_limit = {}};
    const auto refusals = budget::RoomMaker::get().refusals();
    const MemoryScope memory;
    const Bytes before = memory_stats().current;
    std::vector<double> ms;
    MemoryCapStats first, last;
    try {
      const MemoryCap cap(limit, options_.cap());
      for (int i = 0; i < steps; ++i) {
        const double took = timed();
        if (i == 0 && steps > 1)
          first = cap.stats();
        else
          ms.push_back(took);
        check_refusals(refusals);
      }
      last = cap.stats();
      trial.cost.peak = before + memory.peak();
    } catch (const OutOfMemory& error) {
      trial.cost.holds = false;
      trial.min_limit = error.reason() == OutOfMemoryReason::kMaxOverhead ? limit : error.min_limit();
      return trial;
    }
    const auto timed_steps = static_cast<int64_t>(ms.size());
    trial.cost.ms = median(std::move(ms));
    trial.cost.ratio = trial.cost.ms / found_.baseline_ms;
    trial.cost.recomputes = (last.recomputes - first.recomputes) / timed_steps;
    trial.cost.evictions = (last.evictions - first.evictions) / timed_steps;
    return trial;
  }

  static void check_refusals(int64_t before) {
    if (budget::RoomMaker::get().refusals() != before)
      throw InvalidArgument(
          "[refrain::least_limit] `step` caught an OutOfMemory, expected it to propagate: the search learns from it "
          "that a limit does not fit");
  }

  Bytes find_least() {
    Bytes holds = found_.peak, lower = found_.level;
    found_.refused = found_.level;
    while (!try_steps(holds, options_.steps()).cost.holds) holds += std::max<Bytes>((holds - found_.level) / 16, 1);
    while (holds - lower > least_step()) {
      const Bytes middle = lower + (holds - lower) / 2;
      const auto trial = try_steps(middle, options_.steps());
      if (trial.cost.holds) {
        holds = middle;
      } else {
        found_.refused = middle;
        lower = std::clamp(*trial.min_limit - 1, middle, holds - 1);
      }
    }
    return holds;
  }

  Bytes least_step() const {
    return std::max<Bytes>(1,
                           static_cast<Bytes>(options_.tolerance() * static_cast<double>(found_.peak - found_.level)));
  }

  // Evictions depend on measured times: the timed steps may not fit where the search's did.
  LimitCost cost_of_least() {
    auto cost = cost_of(found_.limit);
    while (!cost.holds) {
      found_.refused = found_.limit;
      found_.limit += least_step();
      cost = cost_of(found_.limit);
    }
    return cost;
  }

  // Limits are multiples of the bytes over the level before the step.
  std::vector<Bytes> limits() const {
    std::vector<Bytes> limits;
    for (const double multiple : options_.multiples()) {
      const auto limit = found_.level + static_cast<Bytes>(multiple * static_cast<double>(found_.limit - found_.level));
      if (limit <= std::max(found_.peak, found_.limit)) limits.push_back(limit);
    }
    std::sort(limits.begin(), limits.end());
    limits.erase(std::unique(limits.begin(), limits.end()), limits.end());
    return limits;
  }

  LimitCost cost_of(Bytes limit) {
    auto cost = try_steps(limit, std::max(options_.steps(), 1 + options_.runs())).cost;
    return cost.holds ? cost : LimitCost{.limit = limit, .holds = false};
  }

  const std::function<void()>& step_;
  const LeastLimitOptions& options_;
  LeastLimit found_;
};

}  // namespace

LeastLimit least_limit(const std::function<void()>& step, const LeastLimitOptions& options) {
  check(options);
  return Search(step, options).run();
}

std::string LeastLimit::report() const {
  std::string text = fmt::format(
      "lowest limit {} ({} over the level before a step, {}); {} does not fit; without a limit: peak {}, {:.1f} ms a "
      "step\n",
      format_bytes(limit), format_bytes(limit - level), format_bytes(level), format_bytes(refused), format_bytes(peak),
      baseline_ms);
  text += fmt::format("{:>12}  {:>12}  {:>10}  {:>6}  {:>10}  {:>10}\n", "limit", "peak", "ms/step", "ratio",
                      "recomputes", "evictions");
  for (const auto& cost : costs) {
    if (cost.holds)
      text += fmt::format("{:>12}  {:>12}  {:>10.1f}  {:>6.2f}  {:>10}  {:>10}\n", format_bytes(cost.limit),
                          format_bytes(cost.peak), cost.ms, cost.ratio, cost.recomputes, cost.evictions);
    else
      text += fmt::format("{:>12}  {:>12}\n", format_bytes(cost.limit), "does not fit");
  }
  return text;
}

}  // namespace refrain
