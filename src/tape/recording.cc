#include "tape/recording.h"

#include <c10/core/GradMode.h>

#include <chrono>

#include "intercept/covers_storage.h"
#include "intercept/for_each_tensor.h"
#include "intercept/running.h"
#include "intercept/storage_copy.h"
#include "tape/barrier.h"
#include "tape/cap.h"
#include "tape/policy.h"

namespace refrain::tape {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

c10::IValue constant(const c10::IValue& value) {
  if (value.isList() && value.use_count() > 1) return value.deepcopy();
  return value;
}

// LibTorch itself keeps pointers to lengths and offsets across operators: packed sequences do.
bool is_pointed_at(const at::Tensor& tensor) {
  return tensor.dim() <= 1 && (tensor.scalar_type() == c10::kLong || tensor.scalar_type() == c10::kInt);
}

// Counters and running averages: endless chains would keep all their inputs.
constexpr uint8_t kMostRewrites = 64;

}  // namespace

void fix_inside(TapeLock& lock, const at::Tensor& tensor) {
  for (const auto& inner : inner_tensors(tensor))
    if (auto* value = find_value(lock, inner.storage().unsafeGetStorageImpl())) value->fixed = true;
}

Recording::~Recording() {
  if (!op_ && from_outside_.empty()) return;
  TapeLock lock;
  pause_.restore(lock);
  for (auto* value : from_outside_) lock.release(value);
  if (op_) lock.release(op_);
}

void Recording::prepare() {
  const bool checks_inputs = Tape::get().check_inputs.load(std::memory_order_relaxed);
  for (const auto& argument : arguments_) {
    if (!argument.storage)
      kept_.push_back(without_history(*argument.tensor));
    else if (traits_.only_metadata)
      continue;
    else if (is_borrowed(argument.tensor->storage()))
      copy_borrowed(*argument.tensor);
    else if (checks_inputs)
      check_input(*argument.tensor);
  }
  ambient_ = Ambient::now(traits_.precision);
}

void Recording::read_arguments(TapeLock& lock) {
  settle_writes(lock, thread_);
  op_ = lock.tape().ops.make();
  op_->refs = 1;
  op_->region = region_;
  ++lock.tape().stats.live_ops;
  ++region_->refs;
  op_->seq = lock.tape().next_seq++;
  note_recorded(op_->seq);
  op_->traits = &traits_;
  op_->keys = keys_ & kBelowTape;
  op_->ambient = ambient_;
  read_constants();
  for (const auto& argument : arguments_) add_argument(lock, argument);
  for (const auto& argument : arguments_.inside()) add_inside(*argument.tensor);

  bool leaves_only = true;
  for (auto& write : writes_) {
    auto* value = find_value(lock, write.storage.unsafeGetStorageImpl());
    write.produces = !write.once && value && (value->producer || (value->unknown && write.scratch));
    leaves_only &= !write.produces;
  }
  const bool discard = traits_.pure_inplace && leaves_only;
  const uint64_t counted = discard && !region_->cap ? count_own_refs(lock) : 0;
  for (auto& write : writes_) {
    auto* value = find_value(lock, write.storage.unsafeGetStorageImpl());
    if (!value || value->unknown || (write.produces && value->is_leaf())) continue;
    write.copy_wanted = should_copy(lock, *value, counted != 0 && value->mark == counted ? value->plan_index : 0);
  }
  if (from_outside_.empty()) return;
  for (auto* value : from_outside_) lock.release(value);
  from_outside_.clear();
}

void Recording::run(Below below) {
  for (auto& write : writes_)
    if (write.copy_wanted) write.copy = clone_storage(write.storage);
  std::optional<DrawScope> draw;
  if (traits_.may_draw()) read_generator(draw);
  const bool timing = region_->cap || Tape::get().timing.load(std::memory_order_relaxed);
  const int64_t start = timing ? now_ns() - thread_.made_room_ns : 0;
  try {
    below();
  } catch (...) {
    forget_written(writes_, pause_, thread_.unsettled);
    throw;
  }
  if (timing) op_->forward_ns = now_ns() - thread_.made_room_ns - start;
  if (draw) {
    if (!draw->finish()) op_->rng.reset();
    draw.reset();
  }
  if (!region_->policy) return;
  try {
    const auto answer = judge(*op_, *stack_);
    saved_ = saves(answer);
    if (answer == CheckpointPolicy::kOffload) offload_results();
  } catch (...) {
    failure_ = std::current_exception();  // what the operator wrote must be noted all the same
  }
}

void Recording::note_results(TapeLock& lock) {
  auto& stack = *stack_;
  auto& stats = lock.tape().stats;
  const c10::IValue* out = stack.data() + (stack.size() - traits_.num_returns);
  for (auto& write : writes_) note_write_result(lock, write);
  for (size_t i = 0; i < traits_.num_returns; ++i) {
    if (out[i].isTensor()) {
      note_output(lock, out[i].toTensor(), static_cast<int16_t>(i), -1);
    } else if (out[i].isTensorList()) {
      const auto list = out[i].toListRef();
      for (size_t j = 0; j < list.size(); ++j)
        note_output(lock, list[j].toTensor(), static_cast<int16_t>(i), static_cast<int32_t>(j));
    }
  }
  pause_.restore(lock);
  settle_unknown(lock, thread_);
  if (region_->cap) cap_hooks().recorded(lock, *op_);
  if (!op_->outs.empty()) {
    ++stats.recorded_ops;
    stats.recorded_ms += static_cast<double>(op_->forward_ns) / 1e6;
  }
  lock.release(std::exchange(op_, nullptr));
  lock.tape().ops.prefetch();
  lock.tape().values.prefetch();
}

void Recording::rethrow_failure() {
  if (!failure_) return;
  // Autograd raises the version of what an operator wrote once it has returned. This one has written, and does not return.
  for (auto& write : writes_)
    if (!write.once && write.counter.enabled()) write.counter.bump();
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

Value* Recording::stay(Value* value) {
  from_outside_.push_back(value);
  retain(value);
  return value;
}

void Recording::copy_borrowed(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  c10::Storage last;
  {
    TapeLock lock;
    auto* known = find_value(lock, storage.unsafeGetStorageImpl());
    if (known && !known->is_leaf()) return;
    if (known && known->private_copy) last = stay(known)->held;
  }
  const auto [begin, end] = byte_range(tensor);
  if (last && equal_bytes(last, storage, begin, end)) return;
  auto copy = clone_storage(storage);
  TapeLock lock;
  if (auto* known = find_value(lock, storage.unsafeGetStorageImpl()); known && known->private_copy)
    overwritten(lock, known, {}, nullptr, thread_.unsettled);
  auto* value = stay(value_of(lock, tensor));
  lock.discard(std::exchange(value->held, std::move(copy)));
  value->private_copy = true;
  lock.tape().stats.leaf_copy_bytes += static_cast<int64_t>(value->nbytes);
}

void Recording::check_input(const at::Tensor& tensor) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  const auto is_made_here = [&](TapeLock& lock) {
    const auto* value = find_value(lock, storage);
    return value && (value->producer || value->private_copy || value->is_evicted());
  };
  {
    TapeLock lock;
    settle_writes(lock, thread_);
    if (is_made_here(lock)) return;
  }
  const auto hash = hash_of(tensor.storage());
  TapeLock lock;
  if (is_made_here(lock)) return;
  auto* value = value_of(lock, tensor);
  if (value->hashed && value->hash != hash) {
    overwritten(lock, value, {}, nullptr, thread_.unsettled);
    value = value_of(lock, tensor);
  }
  stay(value)->hashed = true;
  value->hash = hash;
}

void Recording::read_constants() {
  const c10::IValue* const in = stack_->data() + (stack_->size() - traits_.num_args);
  auto& args = op_->args;
  args.resize(traits_.num_args);
  for (size_t i = 0; i < traits_.num_args; ++i) {
    const auto& value = in[i];
    if (value.isTensor()) continue;
    if (!value.isList())
      args[i] = value;
    else if (value.isIntList())
      args[i] = constant(value);
    else if (traits_.is_tensor_list(i))
      args[i] = static_cast<int64_t>(value.toListRef().size());
    else
      args[i] = constant(value);
  }
}

void Recording::add_argument(TapeLock& lock, const Argument& argument) {
  const auto& tensor = *argument.tensor;
  auto& ref = op_->refs_in.emplace_back();
  ref.arg = argument.position;
  ref.element = argument.element;
  if (!argument.storage) {
    ref.kept = std::move(kept_[next_kept_++]);
    remember_version(ref, tensor);
    return;
  }
  ref.meta.assign(tensor);
  const auto& storage = tensor.storage();
  ref.device = storage.device();
  const auto* write = argument.write;
  auto replay = write ? write->replay : ReplayArg::kBytes;
  if (write) {
    if (traits_.full_overwrite && argument.position == 0) replay = ReplayArg::kWriteOnly;
    if (replay == ReplayArg::kWriteOnly && !covers_storage(tensor)) replay = ReplayArg::kBytes;
    auto& noted = write_to(writes_, tensor);
    noted.scratch &= replay == ReplayArg::kWriteOnly;
    if (!noted.counter.enabled()) noted.counter = tensor.unsafeGetTensorImpl()->version_counter();
    noted.once |= replay == ReplayArg::kScratch || replay == ReplayArg::kUndefined;
    noted.ref = static_cast<int32_t>(op_->refs_in.size() - 1);
    ref.written = true;
  }
  // the value that `CapHooks::begin` found is alive, and still of this storage if `key` says so
  const bool is_known = argument.value && argument.value->key == argument.storage;
  auto* value = is_known ? argument.value : find_value(lock, argument.storage);
  const bool lifted = value && pause_.lift(value);
  if (traits_.only_metadata) return;
  if (replay == ReplayArg::kUndefined) {
    op_->refs_in.pop_back();
    return;
  }
  if (replay != ReplayArg::kBytes) {
    ref.scratch_bytes = storage.nbytes();
    return;
  }
  // Unknown bytes written in part by nothing but this operator stay unknown; read by it, they come from outside.
  if (value && value->unknown) {
    if (write && traits_.pure_inplace && traits_.writes.size() == 1 && argument.element < 0) return;
    make_leaf(lock, value);
  }
  if (!value) value = value_of(lock, tensor);
  refer(lock, ref, value, tensor);
  if (!lifted && value->is_leaf() && !value->private_copy) pause_.arm_after(value);
}

void Recording::add_inside(const at::Tensor& tensor) {
  auto& ref = op_->refs_in.emplace_back();
  ref.arg = ArgRef::kInside;
  ref.kept = tensor;
  ref.meta.assign(tensor);
  remember_version(ref, tensor);
}

uint64_t Recording::count_own_refs(TapeLock& lock) {
  const uint64_t number = ++lock.tape().plan_number;
  for (const auto& ref : op_->refs_in) {
    if (!ref.value) continue;
    if (std::exchange(ref.value->mark, number) != number) ref.value->plan_index = 0;
    ++ref.value->plan_index;
  }
  return number;
}

void Recording::remember_version(ArgRef& ref, const at::Tensor& tensor) {
  if (tensor.is_inference()) return;
  ref.counter = tensor.unsafeGetTensorImpl()->version_counter();
  ref.version = ref.counter.current_version();
  if (ref.value) ref.metadata_bumps = ref.value->metadata_bumps;
}

void Recording::refer(TapeLock& lock, ArgRef& ref, Value* value, const at::Tensor& tensor) {
  ref.value = value;
  retain(value);
  if (!region_->cap) ++value->op_refs;
  ref.holds = needs_hold(lock, value, op_->region) || (value->is_leaf() && ref.meta.wrapped_number);
  if (ref.holds) hold(lock, value);
  if (!value->private_copy && (ref.holds || (region_->cap && value->is_leaf()))) remember_version(ref, tensor);
}

void Recording::read_generator(std::optional<DrawScope>& draw) {
  const auto generator = generator_of(*stack_, traits_.num_args);
  if (!generator.defined()) return;
  if (!op_->region->preserve_rng_state) {
    op_->rng_not_preserved = traits_.random;
    if (!thread_.draws) return;
  }
  const BelowTape below;
  draw.emplace(thread_.open, generator, traits_);
  if (op_->region->preserve_rng_state) op_->rng = draw->before();
}

Value* Recording::new_value(TapeLock& lock, const c10::VariableVersion& counter, const c10::Storage& storage) {
  auto* value = lock.tape().values.make(storage);
  ++lock.tape().stats.live_values;
  auto* region = op_->region;
  value->region = region;
  ++region->refs;
  value->region_index = static_cast<uint32_t>(region->values.size());
  region->values.push_back(value);
  value->last_use = op_->seq;
  if (region->cap) cap_hooks().made(lock, value);
  value->counter = counter;
  if (counter.enabled()) value->version = counter.current_version();
  return value;
}

void Recording::produce(Value* value, OutRef out) {
  value->producer = op_;
  ++op_->refs;
  value->out = static_cast<uint32_t>(op_->outs.size());
  out.value = value;
  value->saved = saved_;
  if (const auto at = find_offloaded(value->storage._unsafe_get_target()); at != PointerIndex::kNone) {
    value->offloaded = offloaded_[at].second;
    value->saved = !value->offloaded;
  }
  op_->outs.push_back(out);
}

size_t Recording::find_offloaded(const c10::StorageImpl* storage) {
  return offloaded_index_.find(offloaded_, storage, [](const auto& entry) { return entry.first; });
}

void Recording::offload_results() {
  const auto results = torch::jit::last(*stack_, traits_.num_returns);
  for_each_tensor(results.data(), results.size(), [&](const at::Tensor& tensor, size_t, int32_t) {
    if (!has_plain_storage(tensor)) return;
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    if (find_offloaded(storage) != PointerIndex::kNone) return;
    offloaded_.emplace_back(storage, store_or_keep(*op_->region->offload, tensor.storage()));
  });
}

void Recording::note_write_result(TapeLock& lock, RecordedWrite& write) {
  auto* impl = write.storage.unsafeGetStorageImpl();
  auto* before = find_value(lock, impl);
  if (!before) return;
  const bool too_long = region_->cap && before->rewrites == kMostRewrites;
  if (!write.produces || write.moved() || too_long) {
    if (before->unknown && !write.moved()) return;
    overwritten(lock, before, std::move(write.copy), nullptr, thread_.unsettled);
    return;
  }
  auto* after = new_value(lock, write.counter, write.storage);
  produce(after, OutRef{nullptr, -1, -1, write.ref});
  if (region_->cap) after->rewrites = before->rewrites + 1;
  after->fixed |= before->fixed;
  after->pins = before->pins;
  after->saved |= before->saved;  // the kept bytes are these now: the same memory, with more work in them
  retain(after);
  overwritten(lock, before, std::move(write.copy), after, thread_.unsettled);
  map_value(lock, after, impl, true);
  arm(after, impl);
  lock.release(after);
}

void Recording::note_output(TapeLock& lock, const at::Tensor& tensor, int16_t ret, int32_t element) {
  if (!tensor.defined()) return;
  if (!has_plain_storage(tensor)) {
    if (region_->cap) fix_inside(lock, tensor);
    return;
  }
  const auto& storage = tensor.storage();
  auto* impl = storage.unsafeGetStorageImpl();
  if (arguments_.has(impl, argument_index_)) return;
  if (find_value(lock, impl)) return;
  auto* value = new_value(lock, tensor.unsafeGetTensorImpl()->version_counter(), storage);
  if (traits_.uninitialized)
    value->unknown = true;
  else
    produce(value, OutRef{nullptr, ret, element, -1});
  if (region_->cap) value->fixed = is_pointed_at(tensor);
  map_value(lock, value, impl, true);
  if (value->producer) arm(value, impl);
}

}  // namespace refrain::tape
