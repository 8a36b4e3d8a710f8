#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "refrain/api.h"
#include "refrain/budget.h"
#include "refrain/bytes.h"

namespace refrain {

/// One real step: its operators with times, its values with exact bytes and live ranges. Copies share.
class REFRAIN_API StepTrace {
 public:
  /// Reads a trace from a file that `save` wrote.
  /// @throws InvalidArgument  if the file cannot be read.
  /// @throws FormatError      if it is not a trace: what was found, where, what was expected.
  static StepTrace load(const std::string& path);

  /// Writes the trace as JSON.
  /// @throws InvalidArgument  if `path` is empty, a folder, or anything else that is not a regular file.
  /// @throws FileError        if the system refuses to write the file.
  void save(const std::string& path) const;

  [[nodiscard]] int64_t operators() const;  ///< number of operators

  /// Gives the baseline's peak: no eviction, no recomputation.
  /// @return bytes, absolute, as `memory_stats().current`.
  [[nodiscard]] Bytes peak() const;

  /// Sums the time of all operators, each once.
  /// @return milliseconds.
  [[nodiscard]] double operators_ms() const;

  struct State;
  explicit StepTrace(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  const State& state() const { return *state_; }

 private:
  std::shared_ptr<const State> state_;
};

/// How `profile` traces a step. Setters chain: `ProfileOptions().runs(3)`.
class ProfileOptions {
 public:
  /// Sets how many steps to run; each is a real one. Default: 1.
  ///
  /// The last is the trace, with the shortest time that each operator took in all.
  /// @param value  >= 1.
  ProfileOptions& runs(int value) {
    runs_ = value;
    return *this;
  }
  int runs() const { return runs_; }

  /// Sets a free text for reports. Default: "".
  ProfileOptions& model(std::string value) {
    model_ = std::move(value);
    return *this;
  }
  const std::string& model() const { return model_; }

 private:
  int runs_ = 1;
  std::string model_;
};

/// Runs `step` and traces it from its first operator to the end of its first backward.
///
/// Run it under a `MemoryCap` to trace a step that does not fit in memory. The trace then also holds what the cap
/// decided, see `plan_from_cap_decisions`.
/// @throws InvalidArgument  if `runs` is below 1, or inside a step that is profiled or planned already; also what
///                          `step` throws.
/// Cost: about twice the step.
REFRAIN_API StepTrace profile(const std::function<void()>& step, const ProfileOptions& options = {});

/// Says what to evict and what to recompute in a step so that it keeps a budget. Copies share.
class REFRAIN_API StepPlan {
 public:
  /// Reads a plan from a file that `save` wrote.
  /// @throws  as `StepTrace::load`.
  static StepPlan load(const std::string& path);

  /// Writes the plan as JSON.
  /// @throws  as `StepTrace::save`.
  void save(const std::string& path) const;

  [[nodiscard]] bool fits() const;   ///< false: infeasible, and this is the plan with the lowest peak that was found
  [[nodiscard]] Bytes peak() const;  ///< bytes, absolute
  [[nodiscard]] double added_ms() const;        ///< time of the recomputed operators, once each time
  [[nodiscard]] double lower_bound_ms() const;  ///< no plan for the budget adds less
  [[nodiscard]] std::string brief() const;      ///< one line, without a line break
  [[nodiscard]] std::string report() const;     ///< that, and a line for each phase of the search

  struct State;
  explicit StepPlan(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  const State& state() const { return *state_; }

 private:
  std::shared_ptr<const State> state_;
};

/// How `plan_step` searches. Setters chain: `PlanOptions().time_limit(std::chrono::seconds(10))`.
class PlanOptions {
 public:
  /// Sets the time to search for a plan; proving a lower bound may take as much again. Default: 1 s.
  /// @param value  >= 0; with 0 only the first, simple plans are tried.
  PlanOptions& time_limit(std::chrono::duration<double> value) {
    time_limit_ = value;
    return *this;
  }
  std::chrono::duration<double> time_limit() const { return time_limit_; }

 private:
  std::chrono::duration<double> time_limit_{1.0};
};

/// Plans a traced step for a peak: what to evict and what to recompute, with the least added time that it finds.
///
/// @param budget  `Budget::bytes`, absolute; or `Budget::fraction`.
/// @return the plan; if `fits()` is false no plan within the budget was found, and it is the one of the lowest peak
///         found.
/// @throws InvalidArgument  if the trace is defective, `budget` is of the process, or the time limit is negative.
/// Cost: the time limit and as much again, less for small steps. Deterministic unless the time runs out.
REFRAIN_API StepPlan plan_step(const StepTrace& trace, Budget budget, const PlanOptions& options = {});

/// Turns what a `MemoryCap` decided in a traced step into a plan.
/// @throws InvalidArgument  if those decisions cannot be repeated as a plan; says which.
[[nodiscard]] REFRAIN_API StepPlan plan_from_cap_decisions(const StepTrace& trace);

/// Counts what a `MemoryBudget` did since its construction.
struct MemoryBudgetStats {
  int64_t traced_steps = 0;
  int64_t planned_steps = 0;        ///< ran by a plan from beginning to end
  int64_t mismatched_steps = 0;     ///< diverged from the plan; the rest ran with tensors recomputed when they are read
  std::string first_mismatch = {};  ///< where the first of them diverged, in words
  double planning_ms = 0.0;
  int64_t replans = 0;  ///< in bytes: a kind of step was planned again, as more was in use when it began
  int64_t unrecorded_steps =
      0;  ///< ran without a plan, as all kinds of steps fit so; see `MemoryCapOptions::always_record`
};

/// Keeps the steps of this thread within a budget while alive, by a plan: least time added for the peak. Results are
/// those of the baseline, to the bit.
///
///     refrain::MemoryBudget budget(refrain::Budget::fraction(0.5));   // or `bytes`, or a plan from a file
///     for (auto& batch : loader) { ... forward, backward, optimizer step, unchanged ... }
///
/// - The first step of each kind (operators, shapes) is traced, and a plan is made for it at the end of its backward;
///   the next ones run by that plan.
/// - A step that diverges from its plan still has the right results. It is reported once, on LibTorch's warnings.
/// - With bytes, a `MemoryCap` of the same size holds in all steps, the traced ones too. Bytes that stay allocated
///   after a step, as the optimizer's state that the first one makes, are planned for again.
/// - A step ends with its outermost backward.
/// Cost: that of a cap, 1 to 4 us an operator.
/// Threads: the thread that makes it; one at a time in the process.
/// Source: the idea of torch.compile's activation memory budget; here the peak is bounded, not what is saved.
class REFRAIN_API MemoryBudget {
 public:
  /// Plans for a budget.
  /// @param budget  - `Budget::fraction` and `Budget::bytes` bound the peak of tensors' bytes. With `Budget::bytes` a
  ///                  `MemoryCap` of the same size holds in all steps.
  ///                - `Budget::process` and `Budget::available` bound the resident bytes of the process: plans are made
  ///                  for what its tensors can have of them, as the tensor heap rounds their bytes, and a `MemoryCap`
  ///                  of the process holds in all steps.
  /// @throws InvalidArgument  if another `MemoryBudget` or `profile` is active; also what a `MemoryCap` of the budget
  ///                          throws.
  explicit MemoryBudget(Budget budget);

  /// Runs steps by a plan, made here or loaded from a file.
  /// @throws InvalidArgument  if another `MemoryBudget` or `profile` is active.
  explicit MemoryBudget(const StepPlan& plan);
  ~MemoryBudget();
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  [[nodiscard]] MemoryBudgetStats stats() const;

  /// Describes the plan of the kind of step that ran last.
  /// @return text; empty before the first.
  [[nodiscard]] std::string report() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace refrain
