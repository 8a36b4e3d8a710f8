#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "refrain/budget.h"
#include "refrain/bytes.h"

namespace refrain {

/// One real step: its operators with times, its values with exact bytes and lifetimes. Copies share.
class StepTrace {
 public:
  /// @throws InvalidArgument if the file cannot be read, or is no trace: what was found, where, what was expected.
  static StepTrace load(const std::string& path);
  /// JSON. @throws InvalidArgument, FileError.
  void save(const std::string& path) const;

  int64_t operators() const;
  /// Most bytes in use when nothing leaves early; absolute, as `memory_stats().current`.
  Bytes peak() const;
  /// Time of all operators once.
  double operators_ms() const;

  struct State;
  explicit StepTrace(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  const State& state() const { return *state_; }

 private:
  std::shared_ptr<const State> state_;
};

struct ProfileOptions {
  int runs = 1;              ///< >= 1: the last is the trace, with the least time of each operator in all. Each is a real step
  std::string model = {};    ///< free text for reports
};

/// Runs `step` and traces it from its first operator to the end of its first backward. Under a `MemoryCap` it need not fit otherwise; the trace then
/// also tells what the cap did, see `plan_from_cap_decisions`.
/// Cost: about twice the step. @throws what `step` throws; InvalidArgument in a step that is profiled or planned already.
StepTrace profile(const std::function<void()>& step, const ProfileOptions& options = {});

/// What to free and what to compute again in a step so that it keeps a budget.
class StepPlan {
 public:
  /// @throws InvalidArgument as `StepTrace::load`.
  static StepPlan load(const std::string& path);
  void save(const std::string& path) const;

  bool fits() const;         ///< else it is the one of least peak that was found
  Bytes peak() const;        ///< absolute
  double added_ms() const;   ///< operators that run again, once each time
  double lower_bound_ms() const;   ///< no plan for the budget adds less
  std::string brief() const;
  std::string report() const;

  struct State;
  explicit StepPlan(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  const State& state() const { return *state_; }

 private:
  std::shared_ptr<const State> state_;
};

/// @param budget  bytes, absolute; or a part from 0.0, the least peak there is a plan for, to 1.0, the peak without one.
/// @param seconds  to spend at most.
StepPlan plan_step(const StepTrace& trace, Bytes budget, double seconds = 1.0);
StepPlan plan_step(const StepTrace& trace, double budget, double seconds = 1.0);
/// What a cap decided in that step, as a plan.
StepPlan plan_from_cap_decisions(const StepTrace& trace);

struct MemoryBudgetStats {
  int64_t traced_steps = 0;
  int64_t planned_steps = 0;     ///< ran by a plan from beginning to end
  int64_t mismatched_steps = 0;  ///< were another step than planned: everything comes back when it is read
  std::string first_mismatch = {};
  double planning_ms = 0.0;
  int64_t replans = 0;           ///< of bytes: planned again for a kind of step, as more was in use when it began
};

/// While alive, steps on this thread keep a budget by plan: least time added for the peak. Results are those of a run without it, to the bit.
///
///     refrain::MemoryBudget budget(0.5);          // or 400_MiB, or a plan from a file
///     for (auto& batch : loader) { ... forward, backward, optimizer step, unchanged ... }
///
/// The first step of each kind (operators, shapes) is traced and then planned for, at the end of its backward; the next ones run by that plan. A
/// step that turns out otherwise is said once, on LibTorch's warnings; it is still right.
/// With bytes, a `MemoryCap` of as many holds in all steps, the traced ones too; and what comes to stay between steps,
/// as the optimizer's state in the first one, is planned for again. A step ends with its outermost backward.
/// Cost: that of a cap, 1 to 4 us an operator. Threads: the one that makes it; one at a time in the process.
/// Source: the idea of torch.compile's activation memory budget; here the peak is bounded, not what is saved.
class MemoryBudget {
 public:
  /// @throws InvalidArgument if `fraction` is not in 0 .. 1.
  explicit MemoryBudget(double fraction);
  template <std::integral I>
  explicit MemoryBudget(I bytes) : MemoryBudget(Limit{static_cast<Bytes>(bytes)}) {}
  /// Of the process's resident bytes (`Budget::process`, `Budget::available`): plans for what its tensors can have of them, as the tensor
  /// heap rounds their bytes, and a `MemoryCap` of the process holds in all steps. @throws also what that throws.
  explicit MemoryBudget(Budget budget);
  explicit MemoryBudget(const StepPlan& plan);
  ~MemoryBudget();
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  MemoryBudgetStats stats() const;
  /// The plan of the kind of step that ran last; empty before the first.
  std::string report() const;

 private:
  struct Limit {
    Bytes bytes;
  };
  explicit MemoryBudget(Limit limit);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace refrain
