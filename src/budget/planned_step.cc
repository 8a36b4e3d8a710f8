#include "budget/planned_step.h"

#include <fmt/format.h>

#include "evict/evict.h"
#include "refrain/torch_error.h"
#include "replay/run_again.h"
#include "trace/step_tracer.h"

namespace refrain::tape {
namespace {

// Autograd adds up gradients in place where nothing else refers to their bytes. The tape does while it may recompute an
// evicted tensor from them, and a step that is traced evicts nothing.
bool add_up(std::string_view a, std::string_view b) {
  constexpr std::string_view kInPlace = "aten::add_.Tensor", kOutOfPlace = "aten::add.Tensor";
  return (a == kInPlace && b == kOutOfPlace) || (a == kOutOfPlace && b == kInPlace);
}

}  // namespace

PlannedStep::PlannedStep(const graph::Graph& graph, const graph::Schedule& schedule)
    : graph_(graph),
      schedule_(schedule),
      names_(graph.ops.size()),
      names_value_(graph.values.size()),
      names_op_(graph.ops.size()),
      values_(graph.values.size()),
      ops_(graph.ops.size()) {
  made_before_.reserve(graph.ops.size());
  made_bytes_.reserve(graph.values.size());
  for (const auto& op : graph.ops) {
    made_before_.push_back(static_cast<uint32_t>(made_bytes_.size()));
    for (const auto id : op.outputs) made_bytes_.push_back(graph.values[static_cast<size_t>(id)].bytes);
  }
  find_named();
}

void PlannedStep::find_named() {
  for (const auto& actions : schedule_.places)
    for (const auto& action : actions) {
      if (action.kind == graph::Action::Kind::kDrop) {
        names_value_[static_cast<size_t>(action.id)] = true;
        continue;
      }
      names_op_[static_cast<size_t>(action.id)] = true;
      for (const auto out : graph_.ops[static_cast<size_t>(action.id)].outputs)
        names_value_[static_cast<size_t>(out)] = true;
    }
}

PlannedStep::~PlannedStep() { forget(); }

void PlannedStep::forget() {
  place_ = 0;
  acted_ = lost_ = inside_ = false;
  auto temporaries = std::exchange(temporaries_, {});
  TapeLock lock;
  for (auto& [id, bytes] : temporaries) lock.discard(std::move(bytes));
  for (const auto id : held_values_) lock.release(std::exchange(values_[static_cast<size_t>(id)], nullptr));
  for (const auto id : held_ops_) lock.release(std::exchange(ops_[static_cast<size_t>(id)], nullptr));
  held_values_.clear();
  held_ops_.clear();
}

void PlannedStep::mismatch(std::string what) {
  const bool planned_something = acted_;
  forget();
  if (!planned_something) return;  // it had not begun
  lost_ = true;
  ++counters_.mismatched;
  if (counters_.first_mismatch.empty()) counters_.first_mismatch = std::move(what);
}

bool PlannedStep::is_next(const OpTraits& traits) {
  const auto at = static_cast<size_t>(place_);
  if (at >= names_.size()) return false;
  if (names_[at] == &traits) return true;
  const auto& planned = graph_.ops[at].name;
  if (planned != traits.name() && !add_up(planned, traits.name())) return false;
  names_[at] = &traits;
  return true;
}

void PlannedStep::before(const OpTraits& traits, const torch::jit::Stack&) {
  inside_ = false;
  if (lost_) return;
  if (!is_next(traits)) {
    if (place_ == 0) return;
    mismatch(fmt::format(
        "operator {} is `{}`, planned `{}`", place_, traits.name(),
        static_cast<size_t>(place_) < graph_.ops.size() ? graph_.ops[static_cast<size_t>(place_)].name : "the end"));
    if (lost_ || !is_next(traits)) return;
  }
  if (!act_at(static_cast<size_t>(place_))) return;
  inside_ = true;
  was_recorded_ = false;
}

// An evicted tensor can always be recomputed; a temporary that a plan recomputes after its death may read something
// that is gone.
bool PlannedStep::act_at(size_t place) {
  try {
    for (const auto& action : schedule_.places[place]) act(action);
    return true;
  } catch (const CheckpointError& error) {
    mismatch(fmt::format("before operator {} a planned recomputation failed: {}", place, error.what()));
    return false;
  }
}

void PlannedStep::begins(TapeLock&, const OpTraits&, c10::ArrayRef<Value*>) {}

void PlannedStep::recorded(TapeLock&, const Op& op) {
  if (!inside_ || !op.region || !op.region->cap) return;
  was_recorded_ = false;
  const auto at = static_cast<size_t>(place_);
  size_t made = made_before_[at];
  const size_t end = made_end(at);
  for (const auto& out : op.outs) {
    if (!out.value) continue;
    if (made == end || made_bytes_[made++] != static_cast<int64_t>(out.value->nbytes)) return;
  }
  if (made != end) return;
  was_recorded_ = true;
  hold(op);
}

size_t PlannedStep::made_end(size_t place) const {
  return place + 1 < made_before_.size() ? made_before_[place + 1] : made_bytes_.size();
}

void PlannedStep::hold(const Op& op) {
  const auto at = static_cast<size_t>(place_);
  auto id = graph_.ops[at].outputs.begin();
  for (const auto& out : op.outs) {
    if (!out.value) continue;
    const auto v = static_cast<size_t>(*id++);
    if (!names_value_[v]) continue;
    retain(out.value);
    values_[v] = out.value;
    held_values_.push_back(static_cast<graph::ValueId>(v));
  }
  if (!names_op_[at]) return;
  auto* kept = const_cast<Op*>(&op);
  ++kept->refs;
  ops_[at] = kept;
  held_ops_.push_back(place_);
}

void PlannedStep::ends(TapeLock&) {
  if (!std::exchange(inside_, false)) return;
  if (was_recorded_ || made_before_[static_cast<size_t>(place_)] == made_end(static_cast<size_t>(place_))) {
    ++place_;
    return;
  }
  lost_ = true;  // seen under the lock: `before` cleans up
}

void PlannedStep::step_ended() {
  const bool is_whole =
      !lost_ && static_cast<size_t>(place_) + 1 == graph_.ops.size() && graph_.ops.back().name == StepTracer::kEnd;
  if (is_whole) {
    const auto end = schedule_.places.size();
    if (act_at(end - 2) && act_at(end - 1)) ++counters_.planned;
  } else if (place_ > 0 && acted_) {
    ++counters_.mismatched;
    if (counters_.first_mismatch.empty())
      counters_.first_mismatch = fmt::format("it diverged at operator {} of {}", place_, graph_.ops.size());
  }
  forget();
}

void PlannedStep::act(const graph::Action& action) {
  acted_ = true;
  if (action.kind == graph::Action::Kind::kDrop) return drop(action.id);
  recompute(action.id, action.kind == graph::Action::Kind::kRecomputeInPlace);
}

void PlannedStep::drop(graph::ValueId id) {
  if (const auto temporary = temporaries_.find(id); temporary != temporaries_.end()) {
    const auto bytes = std::move(temporary->second);
    temporaries_.erase(temporary);
    return;
  }
  TapeLock lock;
  auto* value = values_[static_cast<size_t>(id)];
  if (value && is_evictable(*value)) (void)evict(lock, value);
}

void PlannedStep::recompute(graph::OpId id, bool in_place) {
  auto* op = ops_[static_cast<size_t>(id)];
  if (!op) return;
  Value* consumed = nullptr;
  c10::Storage bytes;
  if (in_place)
    for (const auto out : graph_.ops[static_cast<size_t>(id)].outputs) {
      const auto overwritten = graph_.values[static_cast<size_t>(out)].overwrites;
      const auto temporary = temporaries_.find(overwritten);
      if (temporary == temporaries_.end()) continue;
      consumed = values_[static_cast<size_t>(overwritten)];
      bytes = std::move(temporary->second);
      temporaries_.erase(temporary);
      break;
    }
  std::unordered_map<const Value*, graph::ValueId> ids;
  for (const auto out : graph_.ops[static_cast<size_t>(id)].outputs) ids[values_[static_cast<size_t>(out)]] = out;
  for (auto& made : run_again(*op, consumed, std::move(bytes)))
    if (const auto known = ids.find(made.value); known != ids.end())
      temporaries_[known->second] = std::move(made.bytes);
}

}  // namespace refrain::tape
