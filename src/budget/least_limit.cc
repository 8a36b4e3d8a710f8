#include "refrain/least_limit.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "evict/room_maker.h"
#include "memory/stack.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain {
namespace {

void check(const LeastLimitOptions& options) {
  const auto refuse = [](const char* name, auto found, const char* expected) {
    throw InvalidArgument(fmt::format("[refrain::least_limit] `{}` is {}, expected {}", name, found, expected));
  };
  if (!(options.tolerance > 0.0 && options.tolerance < 1.0)) refuse("tolerance", options.tolerance, "a part above 0 and below 1");
  if (options.runs < 1) refuse("runs", options.runs, "at least 1");
  if (options.steps < 1) refuse("steps", options.steps, "at least 1");
  for (const double multiple : options.multiples)
    if (!(multiple >= 1.0)) refuse("multiples", multiple, "multiples of the least limit, each at least 1");
  install_memory_tracking();
  if (limiting_allocator().limit() != LimitingAllocator::kNoLimit)
    refuse("step", fmt::format("under a limit of {} already", format_bytes(limiting_allocator().limit())), "no cap, budget or limit around it");
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
    timed();  // what comes to stay, as an optimizer's state
    found_.level = memory_stats().current;
    std::vector<double> baseline;
    for (int i = 0; i < options_.runs; ++i) baseline.push_back(timed());
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
    const auto seen = try_steps(LimitingAllocator::kNoLimit - 1, options_.steps);
    return seen.cost.peak;
  }

  struct Trial {
    LimitCost cost;
    std::optional<Bytes> floor;  ///< if it was refused
  };

  double timed() {
    const auto begin = std::chrono::steady_clock::now();
    ++found_.steps;
    step_();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  }

  // One cap, steps in a row; the last `options_.runs` of them are what the cost is of, the first is not if there are more.
  Trial try_steps(Bytes limit, int steps) {
    Trial trial{.cost = {.limit = limit}, .floor = {}};
    const auto refusals = budget::RoomMaker::get().refusals();
    const MemoryScope memory;
    const Bytes before = memory_stats().current;
    std::vector<double> ms;
    MemoryCapStats first, last;
    try {
      const MemoryCap cap(limit, options_.cap);
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
      trial.floor = error.is_of_time() ? limit : error.floor();
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
      throw InvalidArgument("[refrain::least_limit] `step` caught an OutOfMemory and went on; expected it to let that through, which is how a limit is seen not to hold");
  }

  Bytes find_least() {
    Bytes holds = found_.peak, lower = found_.level;
    found_.refused = found_.level;
    while (!try_steps(holds, options_.steps).cost.holds) holds += std::max<Bytes>((holds - found_.level) / 16, 1);
    while (holds - lower > least_step()) {
      const Bytes middle = lower + (holds - lower) / 2;
      const auto trial = try_steps(middle, options_.steps);
      if (trial.cost.holds) {
        holds = middle;
      } else {
        found_.refused = middle;
        lower = std::clamp(*trial.floor - 1, middle, holds - 1);
      }
    }
    return holds;
  }

  Bytes least_step() const {
    return std::max<Bytes>(1, static_cast<Bytes>(options_.tolerance * static_cast<double>(found_.peak - found_.level)));
  }

  // What to evict is a guess by measured times: the steps that are timed may be refused what the search's were not.
  LimitCost cost_of_least() {
    auto cost = cost_of(found_.limit);
    while (!cost.holds) {
      found_.refused = found_.limit;
      found_.limit += least_step();
      cost = cost_of(found_.limit);
    }
    return cost;
  }

  // In bytes over the level before the step, of which the limits are multiples.
  std::vector<Bytes> limits() const {
    std::vector<Bytes> limits;
    for (const double multiple : options_.multiples) {
      const auto limit = found_.level + static_cast<Bytes>(multiple * static_cast<double>(found_.limit - found_.level));
      if (limit <= std::max(found_.peak, found_.limit)) limits.push_back(limit);
    }
    std::sort(limits.begin(), limits.end());
    limits.erase(std::unique(limits.begin(), limits.end()), limits.end());
    return limits;
  }

  LimitCost cost_of(Bytes limit) {
    auto cost = try_steps(limit, std::max(options_.steps, 1 + options_.runs)).cost;
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
  std::string text = fmt::format("least limit {} ({} over the {} before a step); {} is refused; peak without a limit {}; {:.1f} ms a step without a cap\n",
                                 format_bytes(limit), format_bytes(limit - level), format_bytes(level), format_bytes(refused), format_bytes(peak), baseline_ms);
  text += fmt::format("{:>12}  {:>12}  {:>10}  {:>6}  {:>10}  {:>10}\n", "limit", "peak", "ms/step", "ratio", "recomputes", "evictions");
  for (const auto& cost : costs) {
    if (cost.holds)
      text += fmt::format("{:>12}  {:>12}  {:>10.1f}  {:>6.2f}  {:>10}  {:>10}\n", format_bytes(cost.limit), format_bytes(cost.peak), cost.ms, cost.ratio,
                          cost.recomputes, cost.evictions);
    else
      text += fmt::format("{:>12}  {:>12}\n", format_bytes(cost.limit), "refused");
  }
  return text;
}

}  // namespace refrain
