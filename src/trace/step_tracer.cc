#include "trace/step_tracer.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <limits>

#include "intercept/running.h"
#include "memory/stack.h"
#include "trace/trace_scopes.h"

namespace refrain::tape {
namespace {

bool has_tracked_bytes(const Value& value) {
  const auto storage = value.storage.lock();
  return storage && is_tracked(storage->_mutable_data_ptr_no_checks());
}

template <typename T>
void add_once(std::vector<T>& to, T what) {
  if (std::find(to.begin(), to.end(), what) == to.end()) to.push_back(what);
}

}  // namespace

StepTracer::StepTracer() : scope_(intern(trace_path())), thread_(at::RecordFunction::currentThreadId()) {
  made_under_.from(0, scope_);
  tracking_allocator().open(watch_);
  watch_.peak = watch_.start;
}

StepTracer::~StepTracer() {
  tracking_allocator().close(watch_);
  TapeLock lock;
  for (auto* value : values_) lock.release(value);
}

void StepTracer::scope_changed() {
  if (finished_) return;
  scope_ = intern(trace_path());
  made_under_.from(at::sequence_number::peek(), scope_);
}

uint32_t StepTracer::scope_now() {
  const auto node = torch::autograd::get_current_node();
  if (!node) return scope_;
  const bool accumulates = node->sequence_nr() == std::numeric_limits<uint64_t>::max();
  if (!accumulates) backward_scope_ = node->thread_id() == thread_ ? made_under_.of(node->sequence_nr()) : 0;
  return backward_scope_ != 0 ? backward_scope_ : scope_;
}

std::vector<graph::Action>& StepTracer::actions() {
  // evictions while an operator runs are a little earlier in the schedule: before it
  const auto at = static_cast<size_t>(running_ ? place() - 1 : place());
  if (schedule_.places.size() <= at) schedule_.places.resize(at + 1);
  return schedule_.places[at];
}

graph::ValueId StepTracer::add(Value* value, graph::Value&& known) {
  const auto id = static_cast<graph::ValueId>(values_.size());
  retain(value);
  values_.push_back(value);
  ids_[value] = id;
  alive_.push_back(id);
  known.death = graph::kNone;
  graph_.values.push_back(std::move(known));
  return id;
}

// A value that no operator of the step made is a source; a region's value that died and was recomputed is a new one.
graph::ValueId StepTracer::id_of(Value* value) {
  if (const auto known = ids_.find(value);
      known != ids_.end() && graph_.values[static_cast<size_t>(known->second)].death == graph::kNone)
    return known->second;
  graph::Value source;
  source.bytes = has_tracked_bytes(*value) ? static_cast<int64_t>(value->nbytes) : 0;
  source.birth = place();
  return add(value, std::move(source));
}

// Adds a source that no operator has made or read before: `x.index_put_({mask}, 0.25)` builds a tensor that it alone
// reads.
graph::ValueId StepTracer::add_unseen(Value* value, graph::OpId reader) {
  graph::Value source;
  source.bytes = has_tracked_bytes(*value) ? static_cast<int64_t>(value->nbytes) : 0;
  source.birth = reader;
  auto& op = graph_.ops[static_cast<size_t>(reader)];
  op.outside -= source.bytes;
  op.gap = std::max<int64_t>(0, op.gap - source.bytes);
  return add(value, std::move(source));
}

bool StepTracer::is_there(graph::ValueId id) const {
  const auto& value = *values_[static_cast<size_t>(id)];
  return value.is_evicted() ? false : !value.is_overwritten() && !value.storage.expired();
}

int64_t StepTracer::bytes_there() const {
  int64_t sum = 0;
  for (const auto id : alive_)
    if (is_there(id)) sum += graph_.values[static_cast<size_t>(id)].bytes;
  return sum;
}

void StepTracer::note_deaths(graph::OpId at) {
  std::erase_if(alive_, [&](graph::ValueId id) {
    const auto& value = *values_[static_cast<size_t>(id)];
    auto& known = graph_.values[static_cast<size_t>(id)];
    const bool gone = value.is_overwritten() || value.storage.expired();
    if (gone) known.death = std::max(at, graph::first_place(known));
    if (value.holds > 0 || value.slots) known.evictable = false;  // a region keeps it
    return gone;
  });
}

void StepTracer::begins(TapeLock&, const OpTraits& traits, c10::ArrayRef<Value*> operands) {
  if (!finished_) begin(&traits, operands);
}

void StepTracer::begin(const OpTraits* traits, c10::ArrayRef<Value*> operands) {
  graph::Op made;
  made.name = traits ? traits->name() : kEnd;
  made.replayable = false;
  made.backward = torch::autograd::get_current_graph_task_id() >= 0;
  if (traits) made.scope = interned(scope_now());
  // values that died since the last operator may have been resident at the peak of the gap
  int64_t before_deaths = 0;
  for (const auto id : alive_)
    if (!values_[static_cast<size_t>(id)]->is_evicted()) before_deaths += graph_.values[static_cast<size_t>(id)].bytes;
  note_deaths(place());
  const auto known = graph_.values.size();
  if (traits && !traits->only_metadata)
    for (auto* value : operands)
      if (!value->unknown) add_once(made.inputs, id_of(value));
  for (auto id = known; id < graph_.values.size(); ++id)
    before_deaths += graph_.values[id].bytes;  // sources count in the gap before them
  start_in_use_ = tracking_allocator().current();
  made.outside = start_in_use_ - bytes_there();
  made.gap = std::max<int64_t>(0, watch_.peak.exchange(start_in_use_) - before_deaths);
  graph_.ops.push_back(std::move(made));
  running_ = true;
}

void StepTracer::recorded(TapeLock&, const Op& op) {
  if (!running_ || !op.region || !op.region->cap) return;
  const auto at = place() - 1;
  auto& made = graph_.ops.back();
  made.replayable = !op.rng_not_preserved;
  made.random = static_cast<bool>(op.rng);
  made.ns = op.forward_ns;
  ops_[op.seq] = at;
  std::vector<graph::ValueId> read;
  for (const auto& ref : op.refs_in)
    if (ref.value) add_once(read, ids_.contains(ref.value) ? ids_.at(ref.value) : add_unseen(ref.value, at));
  made.inputs = std::move(read);
  for (size_t i = 0; i < op.outs.size(); ++i) {
    const auto& out = op.outs[i];
    if (!out.value) continue;
    graph::Value value;
    value.bytes = static_cast<int64_t>(out.value->nbytes);
    value.producer = at;
    value.evictable = true;
    value.output = static_cast<int32_t>(made.outputs.size());
    if (out.ref >= 0) {
      const auto* before = op.refs_in[static_cast<size_t>(out.ref)].value;
      if (const auto known = ids_.find(before); known != ids_.end()) {
        value.overwrites = known->second;
        graph_.values[static_cast<size_t>(known->second)].death = at + 1;
        std::erase(alive_, known->second);
      }
    }
    made.outputs.push_back(add(out.value, std::move(value)));
  }
}

void StepTracer::ends(TapeLock&) {
  if (!std::exchange(running_, false)) return;
  auto& op = graph_.ops.back();
  int64_t fresh = 0;
  for (const auto id : op.outputs)
    if (graph_.values[static_cast<size_t>(id)].overwrites == graph::kNone)
      fresh += graph_.values[static_cast<size_t>(id)].bytes;
  op.workspace =
      watch_.peak.exchange(tracking_allocator().current()) - start_in_use_ - fresh + std::exchange(evicted_inside_, 0);
}

void StepTracer::finish() {
  if (std::exchange(finished_, true)) return;
  TapeLock lock;
  begin(nullptr, {});
  running_ = false;
  graph_.end_outside = graph_.end_gap = graph_.ops.back().outside;
  for (const auto id : alive_) graph_.values[static_cast<size_t>(id)].death = place();
  note_evictable();
  schedule_.places.resize(graph_.ops.size() + 1);
  graph_.ops.shrink_to_fit();  // a budget keeps the graphs of all kinds of steps
  graph_.values.shrink_to_fit();
}

// Evicting a value holds its sources. Where a source dies before the value, it would live longer than in the baseline.
void StepTracer::note_evictable() {
  std::vector<graph::OpId> sources_last(
      graph_.ops.size());  // least death of what an operator's results are computed from
  const auto least = [&](const graph::Op& op) {
    auto last = place();
    for (const auto id : op.inputs) {
      const auto& value = graph_.values[static_cast<size_t>(id)];
      const auto producer = static_cast<size_t>(value.producer);
      // a value that outlives its sources stays resident, and is a source itself
      const bool may_leave =
          value.producer != graph::kNone && graph_.ops[producer].replayable && sources_last[producer] >= value.death;
      last = std::min(last, may_leave ? sources_last[producer] : value.death);
    }
    return last;
  };
  for (size_t i = 0; i < graph_.ops.size(); ++i) sources_last[i] = least(graph_.ops[i]);
  for (size_t i = 0; i < values_.size(); ++i) {
    const auto& value = *values_[i];
    auto& known = graph_.values[i];
    known.evictable = known.evictable && value.nbytes > 0 && !value.fixed && !value.gradient && value.pins == 0 &&
                      graph_.ops[static_cast<size_t>(known.producer)].replayable &&
                      sources_last[static_cast<size_t>(known.producer)] >= known.death;
  }
}

void StepTracer::evicted(TapeLock&, Value& value) {
  if (finished_) return;
  if (running_) evicted_inside_ += static_cast<int64_t>(value.nbytes);
  if (const auto known = ids_.find(&value); known != ids_.end())
    actions().push_back({graph::Action::Kind::kDrop, known->second});
}

void StepTracer::replayed(TapeLock&, const Op& op, Value* consumed) {
  if (finished_) return;
  const auto known = ops_.find(op.seq);
  if (known == ops_.end()) return;
  actions().push_back(
      {consumed ? graph::Action::Kind::kRecomputeInPlace : graph::Action::Kind::kRecompute, known->second});
}

void StepTracer::dropped(TapeLock&, Value& value) {
  if (finished_) return;
  if (const auto known = ids_.find(&value); known != ids_.end())
    actions().push_back({graph::Action::Kind::kDrop, known->second});
}

}  // namespace refrain::tape
