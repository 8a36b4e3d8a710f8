#pragma once

#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "graph/schedule.h"
#include "tape/step_listener.h"

namespace refrain::tape {

/// Runs steps under a cap by a schedule: before each operator, the schedule's actions for its place.
///
/// A step is followed operator by operator: names, bytes of results, values read. It begins at the operator that the
/// graph begins with, so operators before that (an optimizer, a validation) are ignored. Where it diverges, the rest of
/// it runs unplanned, and evicted tensors are recomputed when they are read. Results never depend on it.
/// Threads: the one that makes it.
class PlannedStep final : public StepListener {
 public:
  struct Counters {
    int64_t planned = 0;         ///< steps that ran by the schedule to their end
    int64_t mismatched = 0;      ///< steps that diverged from it
    std::string first_mismatch;  ///< in words
  };

  /// @param graph, schedule  live as long as this.
  PlannedStep(const graph::Graph& graph, const graph::Schedule& schedule);
  ~PlannedStep();
  PlannedStep(const PlannedStep&) = delete;
  PlannedStep& operator=(const PlannedStep&) = delete;

  const Counters& counters() const { return counters_; }
  bool is_under_way() const { return place_ > 0 || lost_; }

  void before(const OpTraits& traits, const torch::jit::Stack& stack) override;
  void begins(TapeLock& lock, const OpTraits& traits, c10::ArrayRef<Value*> operands) override;
  void recorded(TapeLock& lock, const Op& op) override;
  void ends(TapeLock& lock) override;
  void step_ended() override;

 private:
  bool is_next(const OpTraits& traits);
  /// @return false if the plan could not be followed there; the rest of the step runs unplanned.
  bool act_at(size_t place);
  void act(const graph::Action& action);
  void drop(graph::ValueId id);
  void recompute(graph::OpId id, bool in_place);
  void mismatch(std::string what);
  void forget();

  /// Values and operators that actions name: those of the step are held until its end, all others are only compared.
  void find_named();
  size_t made_end(size_t place) const;
  void hold(const Op& op);

  const graph::Graph& graph_;
  const graph::Schedule& schedule_;
  std::vector<const OpTraits*> names_;  ///< as last seen at each place
  std::vector<int64_t> made_bytes_;     ///< of all results, in the order of their making
  std::vector<uint32_t> made_before_;   ///< by place: results of the operators before
  std::vector<bool> names_value_, names_op_;
  graph::OpId place_ = 0;
  bool acted_ = false;   ///< in this step
  bool lost_ = false;    ///< this step has diverged
  bool inside_ = false;  ///< an operator of the plan runs
  bool was_recorded_ = false;
  std::vector<Value*> values_;  ///< by id, of the named ones those made so far; owned
  std::vector<Op*> ops_;        ///< likewise; owned
  std::vector<graph::ValueId> held_values_;
  std::vector<graph::OpId> held_ops_;
  std::unordered_map<graph::ValueId, c10::Storage> temporaries_;
  Counters counters_;
};

}  // namespace refrain::tape
