#include "replay/pass.h"

#include <ATen/core/PythonFallbackKernel.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "intercept/running.h"
#include "intercept/storage_barrier.h"
#include "intercept/storage_copy.h"
#include "intercept/unwarned.h"
#include "refrain/torch_error.h"
#include "replay/replay_errors.h"
#include "tape/barrier_pause.h"
#include "tape/cap.h"
#include "tape/step_listener.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

/// Marks the thread for `is_recomputing`.
class ReplayingScope {
 public:
  ReplayingScope() : before_(std::exchange(ThreadState::get().recomputing, true)) {}
  ~ReplayingScope() { ThreadState::get().recomputing = before_; }
  ReplayingScope(const ReplayingScope&) = delete;
  ReplayingScope& operator=(const ReplayingScope&) = delete;

 private:
  bool before_;
};

/// A `BarrierPause` of storages, while alive. Called without the lock, which it takes only where there is a barrier.
class BarriersLifted {
 public:
  explicit BarriersLifted(const c10::SmallVectorImpl<c10::Storage>& storages) {
    for (const auto& storage : storages) {
      if (!storage || !has_barrier(storage.unsafeGetStorageImpl())) continue;
      TapeLock lock;
      if (auto* value = find_value(lock, storage.unsafeGetStorageImpl())) pause_.lift(value);
    }
  }
  ~BarriersLifted() {
    if (pause_.empty()) return;
    TapeLock lock;
    pause_.restore(lock);
  }
  BarriersLifted(const BarriersLifted&) = delete;
  BarriersLifted& operator=(const BarriersLifted&) = delete;

 private:
  BarrierPause pause_;
};

}  // namespace

void Pass::close(TapeLock& lock) {
  std::vector<int32_t> todo;
  for (size_t i = 0; i < values_.size(); ++i)
    if (!values_[i].offloaded) todo.push_back(static_cast<int32_t>(i));
  while (!todo.empty()) {
    const auto index = todo.back();
    todo.pop_back();
    auto* value = values_[index].value;
    auto* op = value->producer;
    if (!op) throw_lost(*value, nullptr);
    if (op->mark == number_) continue;
    op->mark = number_;
    ++op->refs;
    ops_.push_back(op);
    if (op->rng_not_preserved)
      throw CheckpointError(fmt::format(
          "[refrain::checkpoint] backward must recompute the random operator `{}`, but the region was recorded with "
          "preserve_rng_state(false). Leave it on for functions that draw random numbers.",
          op->traits->name()));
    for (const auto& ref : op->refs_in) add_input(*op, ref, todo);
  }
  std::sort(ops_.begin(), ops_.end(), [](const Op* a, const Op* b) { return a->seq < b->seq; });
  for (auto* op : ops_) {
    ++look_;
    for (const auto& ref : op->refs_in)
      if (ref.value && comes_first(values_[ref.value->plan_index])) ++values_[ref.value->plan_index].uses;
    steps_.push_back({op, {}, {}});
    auto& step = steps_.back();
    for (const auto& ref : op->refs_in) step.inputs.push_back(ref.value ? ref.value->plan_index : -1);
    for (const auto& out : op->outs)
      step.outputs.push_back(out.value && out.value->mark == number_ ? out.value->plan_index : -1);
  }
  auto& stats = lock.tape().stats;
  ++stats.replay_passes;
  stats.replayed_ops += static_cast<int64_t>(ops_.size());
  for (auto* op : ops_) stats.replayed_forward_ms += static_cast<double>(op->forward_ns) / 1e6;
}

void Pass::lock_inputs() {
  for (auto& planned : values_)
    if (planned.bytes) lock_bytes(planned);
}

void Pass::run() {
  AmbientScope ambient;
  ReplayingScope replaying;
  const auto now = Ambient::now();
  for (auto& step : steps_) {
    const auto& op = *step.op;
    if (!op.ambient.same_globals(now))
      throw CheckpointError(
          fmt::format("[{}] cannot replay `{}` as it ran in forward: {}. Restore the setting before backward.",
                      recorded_by(op.region), op.traits->name(), describe_change(op.ambient, now)));
    ambient.set(op.ambient);
    for (const auto index : step.inputs)
      if (index >= 0) fetch(values_[index]);
    if (is_capped()) {
      cap_hooks().before_replay();
      lock_inputs(step);
    }
    check_inputs(step);
    run_step(step);
  }
  for (auto& planned : values_)
    if (planned.target) fetch(planned);
}

void Pass::consume(const Value* value) {
  if (value->mark == number_) values_[value->plan_index].ours = true;
}

void Pass::fetch(PlannedValue& planned) {
  if (planned.bytes || !planned.offloaded) return;
  planned.bytes = planned.offloaded->fetch();
  planned.ours = true;
}

void Pass::clear(TapeLock& lock) {
  for (auto& planned : values_) {
    unlock(lock, planned);
    lock.discard(std::move(planned.bytes));
    lock.discard(std::move(planned.offloaded));
    lock.release(planned.value);
  }
  for (auto* op : ops_) lock.release(op);
  values_.clear();
  ops_.clear();
  steps_.clear();
}

void Pass::lock_inputs(const Step& step) {
  TapeLock lock;
  for (const auto index : step.inputs) {
    if (index < 0) continue;
    auto& planned = values_[index];
    if (planned.locked || planned.ours || !planned.bytes) continue;
    if (planned.value->is_evicted()) throw InputLeft();
    lock_bytes(planned);
  }
}

void Pass::check_inputs(const Step& step) {
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    if (step.inputs[i] < 0) continue;
    auto& planned = values_[step.inputs[i]];
    if (!std::exchange(planned.unchecked, false)) continue;
    if (hash_of(planned.bytes) != planned.hash) throw_refilled(*step.op, step.op->refs_in[i]);
  }
}

void Pass::lock_bytes(PlannedValue& planned) {
  planned.locked = true;
  ++planned.value->locks;
}

void Pass::unlock(TapeLock& lock, PlannedValue& planned) {
  if (!std::exchange(planned.locked, false)) return;
  --planned.value->locks;
  touch(lock, planned.value);
}

void Pass::tell_replayed(const Op& op, const Written& written) const {
  auto* listener = step_listener();
  if (!listener) return;
  Value* consumed = nullptr;
  for (const auto& [index, storage] : written)
    if (values_[index].bytes.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) consumed = values_[index].value;
  TapeLock lock;
  listener->replayed(lock, op, consumed);
}

void Pass::tell_dropped(const PlannedValue& planned) const {
  auto* listener = step_listener();
  if (!listener || !planned.ours || planned.written >= 0) return;  // overwritten and consumed: dropped already
  TapeLock lock;
  listener->dropped(lock, *planned.value);
}

void Pass::let_go(PlannedValue& planned) {
  if (planned.locked) {
    TapeLock lock;
    unlock(lock, planned);
  }
  planned.bytes = {};
}

Pass::PlannedValue& Pass::entry(Value* value) {
  if (value->mark != number_) {
    value->mark = number_;
    value->plan_index = static_cast<int32_t>(values_.size());
    retain(value);
    auto& planned = values_.emplace_back();
    planned.value = value;
    planned.offloaded = value->offloaded;
  }
  return values_[value->plan_index];
}

void Pass::add_input(const Op& op, const ArgRef& ref, std::vector<int32_t>& todo) {
  const bool moved = ref.version_moved();
  if (ref.kept.defined() && moved) throw_changed(op, ref);
  auto* value = ref.value;
  if (!value) return;
  if (value->is_leaf() && moved && !value->private_copy && !value->is_in_store()) throw_changed(op, ref);
  if (value->mark == number_) return;
  auto bytes = moved && !value->private_copy ? c10::Storage() : resident(*value);
  if (!bytes && !value->producer && !value->is_in_store()) {
    if (value->hashed) throw_refilled(op, ref);
    throw_lost(*value, &op);
  }
  if (bytes && value->resized && bytes.nbytes() < value->nbytes) throw_freed(op, ref, bytes.nbytes());
  auto& planned = entry(value);
  planned.bytes = std::move(bytes);
  planned.unchecked = value->hashed && value->is_leaf() && !value->private_copy && planned.bytes;
  planned.hash = value->hash;
  if (!planned.bytes && !planned.offloaded) todo.push_back(value->plan_index);
}

void Pass::run_step(Step& step) {
  const auto& op = *step.op;
  torch::jit::Stack stack(op.args.begin(), op.args.end());
  Written written;
  c10::SmallVector<c10::Storage, 4> storages(op.refs_in.size());
  for (size_t i = 0; i < op.refs_in.size(); ++i) {
    const auto& ref = op.refs_in[i];
    if (ref.written && step.inputs[i] >= 0) writable(step.inputs[i], written);
  }
  for (size_t i = 0; i < op.refs_in.size();) {
    const auto& ref = op.refs_in[i];
    if (ref.arg == ArgRef::kInside) break;  // the last ones
    if (ref.element < 0) {
      stack[ref.arg] = tensor_of(step, i, written, storages);
      ++i;
      continue;
    }
    const auto arg = ref.arg;
    const auto length = stack[arg].toInt();
    std::vector<at::Tensor> tensors(length);
    for (; i < op.refs_in.size() && op.refs_in[i].arg == arg; ++i)
      tensors[op.refs_in[i].element] = tensor_of(step, i, written, storages);
    stack[arg] = list_of(op, arg, std::move(tensors));
  }
  fill_empty_lists(op, stack);
  const ReplayedOp replayed(op.seq, op.traits->qualified_name.c_str());
  {
    const BarriersLifted lifted(storages);
    run_kernel(op, stack);
  }
  replayed.results(stack);
  ++operators_run_;
  tell_replayed(op, written);
  collect(step, stack, storages);
  stack.clear();
  ++look_;
  for (const auto index : step.inputs) {
    if (index < 0 || !comes_first(values_[index])) continue;
    auto& planned = values_[index];
    if (--planned.uses > 0 || planned.target) continue;
    tell_dropped(planned);
    let_go(planned);
  }
  for (const auto& [index, storage] : written) values_[index].written = -1;
}

c10::IValue Pass::list_of(const Op& op, size_t arg, std::vector<at::Tensor>&& tensors) {
  const auto& type = op.traits->handle.schema().arguments()[arg].type();
  const auto* list = type->kind() == c10::TypeKind::OptionalType ? type->containedTypes()[0].get() : type.get();
  if (list->containedTypes()[0]->kind() == c10::TypeKind::TensorType) return c10::IValue(std::move(tensors));
  c10::List<std::optional<at::Tensor>> optionals;
  for (auto& tensor : tensors)
    optionals.push_back(tensor.defined() ? std::optional<at::Tensor>(std::move(tensor)) : std::nullopt);
  return optionals;
}

void Pass::fill_empty_lists(const Op& op, torch::jit::Stack& stack) {
  for (const size_t arg : op.traits->tensor_lists)
    if (stack[arg].isInt()) stack[arg] = list_of(op, arg, std::vector<at::Tensor>(stack[arg].toInt()));
}

void Pass::writable(int32_t index, Written& written) {
  auto& planned = values_[index];
  if (planned.written >= 0) return;
  planned.written = static_cast<int32_t>(written.size());
  const bool consume = planned.ours && !planned.target;
  written.emplace_back(index, consume ? planned.bytes : clone_storage(planned.bytes));
}

at::Tensor Pass::tensor_of(const Step& step, size_t i, const Written& written,
                           c10::SmallVectorImpl<c10::Storage>& storages) {
  const auto& ref = step.op->refs_in[i];
  if (ref.kept.defined()) return ref.kept;
  const auto index = step.inputs[i];
  if (index < 0) {
    storages[i] = raw_storage(ref.scratch_bytes, ref.device);
  } else {
    const auto& planned = values_[index];
    storages[i] = planned.written >= 0 ? written[planned.written].second : planned.bytes;
  }
  auto tensor = ref.meta.build(storages[i]);
  if (ref.meta.requires_grad) tensor.unsafeGetTensorImpl()->set_requires_grad(true);
  return tensor;
}

void Pass::run_kernel(const Op& op, torch::jit::Stack& stack) {
  const Unwarned unwarned;
  // Python's fallback reads the dispatch keys of the outermost call; before 2.13 LibTorch asserts that they are set.
  std::optional<at::impl::MaybeSetTLSOnEntryGuard> entered;
  if (op.keys.has(c10::DispatchKey::Python)) entered.emplace();
  if (!op.rng) return op.traits->handle.redispatchBoxed(op.keys, &stack);
  RngReplayScope rng(*op.rng);
  op.traits->handle.redispatchBoxed(op.keys, &stack);
}

void Pass::collect(const Step& step, const torch::jit::Stack& stack,
                   const c10::SmallVectorImpl<c10::Storage>& storages) {
  const auto& op = *step.op;
  for (size_t i = 0; i < op.outs.size(); ++i) {
    if (step.outputs[i] < 0) continue;
    auto& planned = values_[step.outputs[i]];
    if (planned.bytes) continue;
    const auto& out = op.outs[i];
    if (out.ref >= 0)
      planned.bytes = storages[out.ref];
    else if (out.element >= 0)
      planned.bytes = stack[out.ret].toTensorList().get(out.element).storage();
    else
      planned.bytes = stack[out.ret].toTensor().storage();
    planned.ours = true;
    TORCH_INTERNAL_ASSERT(planned.bytes.nbytes() == planned.value->nbytes, "[refrain] replay of ", op.traits->name(),
                          " gave ", planned.bytes.nbytes(), " bytes, forward gave ", planned.value->nbytes);
    if (is_capped()) put_in_place(planned);
  }
}

void Pass::put_in_place(PlannedValue& planned) {
  TapeLock lock;
  if (!cap_hooks().put_back(lock, planned.value, planned.bytes)) return;
  planned.ours = false;
  lock_bytes(planned);
}

}  // namespace refrain::tape
