#pragma once

#include <cstdint>

namespace refrain::tape {

/// A cap with room to spare *rests*: nothing will be evicted, so nothing is recorded, and a step costs what it costs
/// without a cap.
///
/// It may rest from the end of a step on, after some steps in a row that evicted nothing and stayed well below the
/// limit. It wakes before a level above all of these is reached, which the allocator sees. What was made meanwhile
/// cannot be evicted then, like what is older than a cap; the limit holds all the same. Each time that it was woken so, or evicts after such steps,
/// it waits for twice as many steps.
struct RestRule {
  static constexpr int kNever = 1 << 30;
  int steps = 3;          ///< in a row that evicted nothing; `kNever` forbids it
  double room = 0.75;     ///< least from the highest level to the limit, as a fraction of what the steps rise
  double most = 2.0 / 3;  ///< highest level, as a fraction of the limit
  double slack = 0.25;    ///< from the highest level to the one that wakes it, as a fraction of what the steps rise
};

/// Steps in a row in which nothing was evicted. Levels are bytes in use.
struct QuietSteps {
  int count = 0;
  int needed = RestRule().steps;  ///< for a rest
  int64_t lowest = 0;             ///< at their ends
  int64_t highest = 0;            ///< in them
  int64_t limit = 0;              ///< under which they ran
  int64_t evictions = 0;          ///< counted at the end of the last step
};

}  // namespace refrain::tape
