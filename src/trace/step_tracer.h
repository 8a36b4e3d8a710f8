#pragma once

#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "graph/schedule.h"
#include "intercept/module_ranges.h"
#include "memory/tracking_allocator.h"
#include "tape/step_listener.h"

namespace refrain::tape {

/// Records one step, while it listens, as a graph: operators, values, lifetimes, times and exact bytes; and a cap's
/// decisions as a schedule.
///
/// An operator's scope is the path of open module scopes; in backward, of those under which the running node of the
/// graph was made, or, where a gradient is accumulated, the node before it.
/// Bytes are those in use in the process. Where the cap has evicted while an operator ran, that operator's `workspace` may be too large.
/// Cost: linear in live values for each operator. Threads: the one that makes it.
class StepTracer final : public StepListener {
 public:
  StepTracer();
  ~StepTracer();
  StepTracer(const StepTracer&) = delete;
  StepTracer& operator=(const StepTracer&) = delete;

  /// Last entry in the graph, which is no operator: values that died after the last operator are dead before it.
  static constexpr const char* kEnd = "end of step";

  /// Ends the step, if no backward has ended it before.
  void finish();
  graph::Graph& graph() { return graph_; }
  graph::Schedule& schedule() { return schedule_; }

  void before(const OpTraits&, const torch::jit::Stack&) override {}
  void begins(TapeLock& lock, const OpTraits& traits, c10::ArrayRef<Value*> operands) override;
  void recorded(TapeLock& lock, const Op& op) override;
  void ends(TapeLock& lock) override;
  void step_ended() override { finish(); }
  void scope_changed() override;
  void evicted(TapeLock& lock, Value& value) override;
  void replayed(TapeLock& lock, const Op& op, Value* consumed) override;
  void dropped(TapeLock& lock, Value& value) override;

 private:
  void begin(const OpTraits* traits, c10::ArrayRef<Value*> operands);
  graph::ValueId id_of(Value* value);
  graph::ValueId add(Value* value, graph::Value&& known);
  graph::ValueId add_unseen(Value* value, graph::OpId reader);
  bool is_there(graph::ValueId id) const;
  int64_t bytes_there() const;
  void note_deaths(graph::OpId place);
  void note_evictable();
  uint32_t scope_now();
  graph::OpId place() const { return static_cast<graph::OpId>(graph_.ops.size()); }
  std::vector<graph::Action>& actions();

  graph::Graph graph_;
  graph::Schedule schedule_;
  std::vector<Value*> values_;  ///< by id; owned
  std::vector<graph::ValueId> alive_;
  std::unordered_map<const Value*, graph::ValueId> ids_;
  std::unordered_map<uint64_t, graph::OpId> ops_;  ///< by `Op::seq`
  ModuleRanges made_under_;                        ///< by number of a node
  uint32_t scope_ = 0;                             ///< interned; the open scopes
  uint32_t backward_scope_ = 0;                    ///< of the last node
  uint64_t thread_ = 0;                            ///< as nodes have it
  TrackingAllocator::Watch watch_;
  bool running_ = false;
  bool finished_ = false;
  int64_t start_in_use_ = 0;
  int64_t evicted_inside_ = 0;  ///< bytes, while the operator ran
};

}  // namespace refrain::tape
