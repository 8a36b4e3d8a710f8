#pragma once

#include <c10/util/flat_hash_map.h>

#include <atomic>
#include <functional>
#include <vector>

#include "evict/evicted_classes.h"
#include "evict/step_history.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Since the first of the caps alive began.
struct CapCounters {
  std::atomic<int64_t> evictions{0};
  std::atomic<int64_t> evicted_bytes{0};
  std::atomic<int64_t> recomputes{0};
  std::atomic<int64_t> recompute_ns{0};
};
CapCounters& cap_counters();

/// Of this step, which begins when a backward ends.
struct StepTimes {
  int64_t operators_ns = 0;  ///< of the last whole step if that took longer
  int64_t again_ns = 0;      ///< computing again
};
/// One pass of this step that brought something back.
struct StepPass {
  int64_t demand = 0;  ///< bytes: a limit of as many, and it would not have been needed
  int64_t ns = 0;
};
StepTimes step_times(TapeLock& lock);
void add_time(TapeLock& lock, int64_t operators_ns);
/// A copy, for when time has run out.
std::vector<StepPass> step_passes(TapeLock& lock);
void add_pass(TapeLock& lock, const StepPass& pass);
/// Bytes of all that is evicted now.
int64_t absent_bytes(TapeLock& lock);
/// Values that are evicted from now on leave for want of a limit of `bytes`.
void set_demand(TapeLock& lock, int64_t bytes);
/// Called before each pass, without the lock; may throw, then there is none. Null for nothing.
void set_before_pass(void (*call)());
void before_pass();

/// Least time that this operator took so far with arguments of these sizes, in this process.
int64_t least_ns(TapeLock& lock, const Op& op, int64_t ns);

/// For tests: called before each operator, and each that is replayed; null for none.
void set_before_operator(std::function<void()> call);
bool has_before_operator();
void before_operator();

/// What the caps of the process share. Guarded by the tape's lock.
struct Cap {
  int open = 0;
  bool closing = false;  ///< nothing leaves any more
  std::vector<Value*> evicted;
  EvictedClasses classes;
  StepHistory history;
  uint64_t steps = 0;  ///< ended
  uint64_t changes = 0;  ///< to what is evicted
  CapCounters counters;
  StepTimes step;
  std::vector<StepPass> passes;  ///< of this step
  int64_t last_operators_ns = 0;
  int64_t absent_bytes = 0;
  int64_t demand = 0;
  std::atomic<void (*)()> before_pass{nullptr};
  ska::flat_hash_map<size_t, int64_t> least_ns;
  std::function<void()> before_operator;
};
Cap& cap();

}  // namespace refrain::tape
