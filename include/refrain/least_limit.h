#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/memory_cap.h"

namespace refrain {

/// How `least_limit` searches. Setters chain: `LeastLimitOptions().runs(5)`.
class LeastLimitOptions {
 public:
  /// Ends the search when the limit that holds is this close above one that was refused. Default: 0.01.
  /// @param value  a fraction of what the step needs over the level before it, above 0 and below 1.
  LeastLimitOptions& tolerance(double value) {
    tolerance_ = value;
    return *this;
  }
  double tolerance() const { return tolerance_; }

  /// Sets which limits to measure. Those above the baseline's peak are omitted. Default: 1, 1.1, 1.25, 1.5.
  /// @param value  multiples of the lowest limit, both over the level before the step; each >= 1.
  LeastLimitOptions& multiples(std::vector<double> value) {
    multiples_ = std::move(value);
    return *this;
  }
  const std::vector<double>& multiples() const { return multiples_; }

  /// Sets the number of timed steps at each of these limits, and without one; the median counts. Default: 3.
  /// @param value  >= 1.
  LeastLimitOptions& runs(int value) {
    runs_ = value;
    return *this;
  }
  int runs() const { return runs_; }

  /// Sets how many steps in a row a limit must hold. Default: 2.
  ///
  /// The first has no history of uses yet; two find what many of one kind would.
  /// @param value  >= 1.
  LeastLimitOptions& steps(int value) {
    steps_ = value;
    return *this;
  }
  int steps() const { return steps_; }

  /// Sets the options of the caps. Default: `max_overhead(10)`.
  ///
  /// A limit at which a step recomputes for longer than `max_overhead` does not hold.
  LeastLimitOptions& cap(const MemoryCapOptions& value) {
    cap_ = value;
    return *this;
  }
  const MemoryCapOptions& cap() const { return cap_; }

 private:
  double tolerance_ = 0.01;
  std::vector<double> multiples_ = {1.0, 1.1, 1.25, 1.5};
  int runs_ = 3;
  int steps_ = 2;
  MemoryCapOptions cap_ = MemoryCapOptions().max_overhead(10.0);
};

/// The cost of a limit for a step.
struct LimitCost {
  Bytes limit = 0;         ///< absolute
  Bytes peak = 0;          ///< absolute; <= `limit`
  double ms = 0.0;         ///< a step
  double ratio = 0.0;      ///< to the baseline's step
  int64_t recomputes = 0;  ///< operators recomputed in a step
  int64_t evictions = 0;   ///< in a step
  /// False: the numbers are 0. Near the lowest limit a higher one may be refused, as what to evict is a guess.
  bool holds = true;
};

/// The result of `least_limit`. Bytes are absolute, as `memory_stats().current`.
struct REFRAIN_API LeastLimit {
  Bytes limit = 0;               ///< the lowest limit: the least that was seen to hold
  Bytes refused = 0;             ///< the highest below it that was run and refused, or the level before a step
  Bytes level = 0;               ///< before a step
  Bytes peak = 0;                ///< without a limit, under a cap
  double baseline_ms = 0.0;      ///< a step without a cap
  int steps = 0;                 ///< times that `step` was called
  std::vector<LimitCost> costs;  ///< by limit, ascending

  /// Writes a table of a few lines.
  [[nodiscard]] std::string report() const;
};

/// Finds the lowest limit of a `MemoryCap` under which `step` runs, by running it, and what a few limits above cost.
///
///     const auto least = refrain::least_limit([&] { optimizer.zero_grad(); loss_of(batch).backward(); });
///     refrain::MemoryCap cap(least.costs[1].limit);   // a tenth above the lowest
///
/// - The search is a bisection between the level before the step and its peak; a refusal's `OutOfMemory::min_limit`
///   shortens it.
/// - The limit is one that held. That none below holds is not proven, and a step of another shape has another limit.
/// @param step  a whole step, to the end of its backward, that can be run again and again.
///              - It runs again after a refusal too, which stops it half-way: it begins by dropping what such a step
///                left behind, as gradients.
///              - It lets `OutOfMemory` through.
///              - Nothing is put back: each call is a real step, draws from generators, and moves parameters if it has
///                an optimizer. Pass one without, if that is not wanted.
/// @throws InvalidArgument  if an option is out of range, a cap or limit is alive, or `step` caught an `OutOfMemory`;
///                          also what else `step` throws.
/// Cost: some 20 to 40 steps; those near the lowest limit take several times the baseline's time.
/// Threads: runs on the calling thread.
REFRAIN_API LeastLimit least_limit(const std::function<void()>& step, const LeastLimitOptions& options = {});

}  // namespace refrain
