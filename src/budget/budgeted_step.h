#pragma once

#include <map>
#include <memory>

#include "budget/step_state.h"
#include "tape/planned_step.h"
#include "tape/step_tracer.h"

namespace refrain::budget {

/// Traces the first step of each kind, plans for it, and runs the next ones by that plan. A step is known by its first operator and the sizes that
/// this reads.
/// Threads: the one that makes it.
class BudgetedStep final : public tape::StepListener {
 public:
  explicit BudgetedStep(plan::Budget budget) : budget_(budget), may_trace_(true) {}
  /// Only this plan.
  explicit BudgetedStep(const StepPlan& plan);

  MemoryBudgetStats stats() const;
  std::string report() const { return last_ ? last_->plan->report() : std::string(); }

  void before(const tape::OpTraits& traits, const torch::jit::Stack& stack) override;
  void begins(tape::TapeLock& lock, const tape::OpTraits& traits, c10::ArrayRef<tape::Value*> operands) override;
  void recorded(tape::TapeLock& lock, const tape::Op& op) override;
  void ends(tape::TapeLock& lock) override;
  void step_ended() override;
  void evicted(tape::TapeLock& lock, tape::Value& value) override;
  void replayed(tape::TapeLock& lock, const tape::Op& op, tape::Value* consumed) override;
  void dropped(tape::TapeLock& lock, tape::Value& value) override;

 private:
  static constexpr size_t kMostKinds = 16;

  struct Kind {
    std::shared_ptr<const StepPlan::State> state;
    const plan::Plan* plan = nullptr;
    std::unique_ptr<tape::PlannedStep> step;
  };
  void add(uint64_t kind, std::shared_ptr<const StepPlan::State> state);
  void plan_traced();
  tape::StepListener* active() const;

  const plan::Budget budget_;
  const bool may_trace_;
  std::map<uint64_t, Kind> kinds_;
  std::string first_operator_;               ///< all kinds of steps begin with it
  std::unique_ptr<tape::StepTracer> tracer_;
  uint64_t traced_kind_ = 0;
  Kind* running_ = nullptr;
  Kind* last_ = nullptr;
  bool has_warned_ = false;
  int64_t traced_ = 0;
  double planning_ms_ = 0.0;
};

}  // namespace refrain::budget
