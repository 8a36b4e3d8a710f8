#pragma once

#include <c10/util/flat_hash_map.h>

#include <atomic>
#include <functional>
#include <vector>

#include "evict/evicted_classes.h"
#include "evict/quiet_steps.h"
#include "evict/step_history.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Counters since the first of the caps alive was opened.
struct CapCounters {
  std::atomic<int64_t> evictions{0};
  std::atomic<int64_t> evicted_bytes{0};
  std::atomic<int64_t> recomputes{0};
  std::atomic<int64_t> recompute_ns{0};
  std::atomic<int64_t> unrecorded_steps{0};
  std::atomic<int64_t> rests{0};  ///< that began
};
CapCounters& cap_counters();

/// Times of this step, which begins when a backward ends.
struct StepTimes {
  int64_t operators_ns = 0;  ///< of the last whole step if that took longer
  int64_t again_ns = 0;      ///< recomputing
};
/// A replay pass of this step.
struct StepPass {
  int64_t demand = 0;  ///< bytes: under a limit this large the pass would not have been needed
  int64_t ns = 0;
};
StepTimes step_times(TapeLock& lock);
void add_time(TapeLock& lock, int64_t operators_ns);
/// Copies the passes, for when `max_overhead` is exceeded.
std::vector<StepPass> step_passes(TapeLock& lock);
void add_pass(TapeLock& lock, const StepPass& pass);
/// Sum of the bytes that are evicted now.
int64_t absent_bytes(TapeLock& lock);
/// Sets the demand of values that are evicted from now on: with a limit of `bytes` they would have stayed resident.
void set_demand(TapeLock& lock, int64_t bytes);
/// Sets the function called before each pass, without the lock; null for none. If it throws, the pass does not run.
void set_before_pass(void (*call)());
void before_pass();

/// Returns the least time that this operator took so far with arguments of these sizes, in this process.
int64_t least_ns(TapeLock& lock, const Op& op, int64_t ns);

/// Whether there is a function to call before each operator, see `set_before_operator`.
bool has_before_operator();
void before_operator();

/// State that the caps of the process share. Guarded by the tape's lock.
struct Cap {
  int open = 0;
  int always_recording = 0;  ///< of these
  Region* region = nullptr;  ///< owned while one is open; `Tape::cap`, or null there while it rests
  RestRule rest_rule;
  QuietSteps quiet;
  std::vector<QuietSteps> quiet_before;  ///< under caps with other limits
  bool closing = false;                  ///< nothing is evicted any more
  std::vector<Value*> evicted;
  EvictedClasses classes;
  StepHistory history;
  uint64_t steps = 0;    ///< ended
  uint64_t changes = 0;  ///< evictions and their ends
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
