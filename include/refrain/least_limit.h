#pragma once

#include <functional>
#include <string>
#include <vector>

#include "refrain/bytes.h"
#include "refrain/memory_cap.h"

namespace refrain {

struct LeastLimitOptions {
  /// Ends the search when the limit that holds is so close above one that does not, by a refusal or what it says of others: a part of what the step takes
  /// over the level before it, > 0, < 1.
  double tolerance = 0.01;
  /// Limits to measure, as multiples of the least one, over the level before the step; >= 1. Those above the peak are left out.
  std::vector<double> multiples = {1.0, 1.1, 1.25, 1.5};
  int runs = 3;   ///< >= 1: timed steps at each of these limits, and without; the median counts
  int steps = 2;  ///< >= 1: steps in a row that a limit must hold. The first knows no next uses yet; two are as good as many of one kind
  /// Of the caps. A limit at which a step recomputes for more than `max_overhead` does not hold.
  MemoryCapOptions cap = MemoryCapOptions().max_overhead(10.0);
};

/// What a limit costs a step.
struct LimitCost {
  Bytes limit = 0;          ///< absolute
  Bytes peak = 0;           ///< absolute; <= `limit`
  double ms = 0.0;          ///< a step
  double ratio = 0.0;       ///< to the baseline's step
  int64_t recomputes = 0;   ///< operators that run again in a step
  int64_t evictions = 0;    ///< in a step
  bool holds = true;        ///< else the numbers are 0: near the least limit a higher one may be refused, as what to evict is a guess
};

/// Bytes are absolute, as `memory_stats().current`.
struct LeastLimit {
  Bytes limit = 0;         ///< the least that was seen to hold
  Bytes refused = 0;       ///< the highest below it that was run and refused, or the level before a step
  Bytes level = 0;         ///< before a step
  Bytes peak = 0;          ///< without a limit, under a cap
  double baseline_ms = 0.0;  ///< a step without a cap
  int steps = 0;           ///< times that `step` was called
  std::vector<LimitCost> costs;  ///< by limit, ascending

  /// A table of a few lines.
  std::string report() const;
};

/// Finds the least limit of a `MemoryCap` under which `step` runs, by running it, and what a few limits above cost.
///
///     const auto least = refrain::least_limit([&] { optimizer.zero_grad(); loss_of(batch).backward(); });
///     refrain::MemoryCap cap(least.costs[1].limit);   // a tenth above the least
///
/// A bisection between the level before the step and its peak; a refusal's `OutOfMemory::floor` shortens it. The limit is one that held; that none below does is
/// not proven, and a step of another shape has another.
/// @param step  a whole step, to the end of its backward, that can be run again and again, and after a refusal: begin with what one that was stopped half-way
///              leaves, as gradients. It must let `OutOfMemory` through. Nothing is put back: each call is a real step, draws from generators,
///              and moves parameters if it has an optimizer. Pass one without, if that is not wanted.
/// @throws InvalidArgument  if an option is out of range, a cap or limit is alive, or `step` caught an `OutOfMemory`; what else `step` throws.
/// Cost: some 20 to 40 steps; those near the least limit take several times the baseline's time. Threads: the one that calls.
LeastLimit least_limit(const std::function<void()>& step, const LeastLimitOptions& options = {});

}  // namespace refrain
