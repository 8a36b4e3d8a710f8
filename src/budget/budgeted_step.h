#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "budget/planned_step.h"
#include "budget/step_state.h"
#include "trace/step_tracer.h"

namespace refrain::budget {

/// Selects planning for what the limit of the process in force leaves to tensors.
struct OfProcess {};

/// Traces the first step of each kind, plans for it, and runs the next ones by that plan.
///
/// The kind of a step is predicted at its first operator that reads a tensor, from the sizes of these and from the
/// kinds of the steps before: as it was last time after these, else that of the last step of those sizes. A wrong
/// prediction is corrected: the next step in that situation is traced. So micro-batches, whose first one makes
/// gradients and whose others add to them, are all planned for from the third cycle on at the latest.
/// Threads: the one that makes it.
class BudgetedStep final : public tape::StepListener {
 public:
  explicit BudgetedStep(plan::Budget budget) : budget_(budget), may_trace_(true) {}
  explicit BudgetedStep(OfProcess) : of_process_(true), may_trace_(true) {}
  /// Runs steps by this plan only.
  explicit BudgetedStep(const StepPlan& plan);

  MemoryBudgetStats stats() const;
  std::string report() const { return last_ ? last_->plan->report() : std::string(); }

  void before(const tape::OpTraits& traits, const torch::jit::Stack& stack) override;
  void begins(tape::TapeLock& lock, const tape::OpTraits& traits, c10::ArrayRef<tape::Value*> operands) override;
  void recorded(tape::TapeLock& lock, const tape::Op& op) override;
  void ends(tape::TapeLock& lock) override;
  void step_ended() override;
  void scope_changed() override;
  bool may_rest() const override;
  void woke() override { skips_ = true; }
  void evicted(tape::TapeLock& lock, tape::Value& value) override;
  void replayed(tape::TapeLock& lock, const tape::Op& op, tape::Value* consumed) override;
  void dropped(tape::TapeLock& lock, tape::Value& value) override;

 private:
  static constexpr size_t kMostKinds = 16;
  static constexpr int kLongestRow = 64;
  static constexpr int kMostReplans = 4;     ///< of a kind
  static constexpr int64_t kLeastRise = 64;  ///< in the level: this part of the budget

  /// What determines the predicted kind of a step.
  struct Situation {
    uint64_t sizes = 0;    ///< of the tensors that the first operator reads, with its name
    int before = kNoKind;  ///< kind of the last step
    int row = 0;           ///< how many of that kind in a row, at most `kLongestRow`
    auto operator<=>(const Situation&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14
  };
  static constexpr int kNoKind = -1;
  static constexpr int kToTrace = -2;

  struct Kind {
    std::string fingerprint;  ///< of the graph
    std::shared_ptr<const StepPlan::State> state;
    const plan::Plan* plan = nullptr;
    std::unique_ptr<tape::PlannedStep> step;
    int64_t level = 0;  ///< bytes in use when a step begins, as planned for
    int replans = 0;
    bool fits_plainly = false;  ///< within the budget without a plan

    void set(std::shared_ptr<const StepPlan::State> planned);
  };
  /// Adds a kind. @return its number.
  int add(std::shared_ptr<const StepPlan::State> state);
  /// Replans if more is in use now than was planned for. Only a budget of bytes counts what is allocated before the
  /// step.
  void plan_for_level(Kind& kind);
  plan::Plan timed_plan(const graph::Graph& graph, const plan::PlanOptions& options);
  /// Budget in force now.
  plan::Budget budget() const;
  void begin_step(const tape::OpTraits& traits, const torch::jit::Stack& stack);
  int guess() const;
  void plan_traced();
  void note_end(int kind);
  void note_mismatch(const Kind* kind);
  tape::StepListener* active() const;

  const plan::Budget budget_{};
  const bool of_process_ = false;
  const bool may_trace_;
  std::vector<std::unique_ptr<Kind>> kinds_;
  std::map<Situation, int> known_;         ///< kinds seen in a situation, where the default was wrong; or `kToTrace`
  std::map<uint64_t, int> last_of_sizes_;  ///< kind of the last step
  std::string first_operator_;             ///< all kinds of steps begin with it
  std::unique_ptr<tape::StepTracer> tracer_;
  Situation situation_;  ///< of this step, once it has begun
  int64_t level_ = 0;    ///< then
  bool has_begun_ = false;
  std::atomic<bool> skips_{false};  ///< to the end of this step, whose beginning was not recorded
  int before_ = kNoKind, row_ = 0;
  Kind* running_ = nullptr;
  Kind* last_ = nullptr;
  bool has_warned_ = false;
  int64_t traced_ = 0, planned_ = 0, mismatched_ = 0, replans_ = 0, unrecorded_ = 0;
  std::string first_mismatch_;
  double planning_ms_ = 0.0;
};

}  // namespace refrain::budget
