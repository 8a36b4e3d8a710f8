#include "tape/replayer.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <chrono>

#include "base/fork.h"
#include "refrain/error.h"
#include "tape/barrier_pause.h"
#include "tape/evict.h"
#include "tape/region_inputs.h"
#include "tape/running.h"
#include "tape/step_listener.h"
#include "tape/storage_copy.h"
#include "tape/unwarned.h"

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

/// A `BarrierPause` of storages, while it lives. Called without the lock, which it takes only where there is a barrier.
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

/// A replay pass: which operators to run, and where each value in it comes from and ends. Made under the lock; run without
/// it on what it owns.
class Plan {
 public:
  struct PlannedValue {
    Value* value = nullptr;   ///< retained
    c10::Storage bytes;
    std::shared_ptr<Offloaded> offloaded;  ///< where to fetch them when first needed
    int32_t uses = 0;         ///< planned operators that still read it
    bool ours = false;        ///< replayed here, so its bytes may be consumed
    bool target = false;
    bool locked = false;      ///< counts in `value->locks`
    bool unchecked = false;   ///< `hash` says what recorded operators read, and nobody has looked yet
    uint64_t hash = 0;
    uint32_t look = 0;        ///< number of the look at an operator's inputs that came by last
    int32_t written = -1;     ///< position among what the operator that runs overwrites, or -1
  };

  explicit Plan(TapeLock& lock) : number_(++lock.tape().plan_number) {}

  void want(Value* value) { entry(value).target = true; }

  /// Finds the operators needed, in recorded order. @throws CheckpointError
  void close(TapeLock& lock) {
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
            "[refrain::checkpoint] backward needs the random operator `{}` again, but the region was recorded with "
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
    ++stats.refills;
    stats.replayed_ops += static_cast<int64_t>(ops_.size());
    for (auto* op : ops_) stats.replayed_forward_ns += op->forward_ns;
  }

  /// Nothing that the pass reads leaves memory before it ran.
  void lock_inputs() {
    for (auto& planned : values_)
      if (planned.bytes) lock_bytes(planned);
  }

  /// What was in memory when this was planned has left.
  struct InputLeft {};

  /// @throws InputLeft unless `lock_inputs` was called; what is back by then stays.
  void run() {
    AmbientScope ambient;
    ReplayingScope replaying;
    const auto now = Ambient::now();
    for (auto& step : steps_) {
      const auto& op = *step.op;
      if (!op.ambient.same_globals(now))
        throw CheckpointError(fmt::format(
            "[{}] cannot replay `{}` as it ran in forward: {}. Restore the setting before backward.", recorded_by(op.region),
            op.traits->name(), describe_change(op.ambient, now)));
      ambient.set(op.ambient);
      for (const auto index : step.inputs)
        if (index >= 0) fetch(values_[index]);
      if (Tape::get().cap.load(std::memory_order_relaxed)) {
        before_operator();
        lock_inputs(step);
      }
      check_inputs(step);
      run_step(step);
    }
    for (auto& planned : values_)
      if (planned.target) fetch(planned);
  }

  /// What the pass reads of `value` may be overwritten.
  void consume(const Value* value) {
    if (value->mark == number_) values_[value->plan_index].ours = true;
  }

  static void fetch(PlannedValue& planned) {
    if (planned.bytes || !planned.offloaded) return;
    planned.bytes = planned.offloaded->fetch();
    planned.ours = true;
  }

  const std::vector<PlannedValue>& values() const { return values_; }
  int64_t operators_run() const { return operators_run_; }

  /// Lets go of everything, bytes included. Needs the lock.
  void clear(TapeLock& lock) {
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

 private:
  struct Step {
    Op* op;
    c10::SmallVector<int32_t, 4> inputs;
    c10::SmallVector<int32_t, 2> outputs;
  };
  /// Planned values that an operator overwrites, and the memory that it does it in.
  using Written = c10::SmallVector<std::pair<int32_t, c10::Storage>, 2>;

  // Late, so that what a long pass needs at its end can leave until then.
  void lock_inputs(const Step& step) {
    TapeLock lock;
    for (const auto index : step.inputs) {
      if (index < 0) continue;
      auto& planned = values_[index];
      if (planned.locked || planned.ours || !planned.bytes) continue;
      if (planned.value->evicted) throw InputLeft();
      lock_bytes(planned);
    }
  }

  // What comes from outside must be what forward read.
  void check_inputs(const Step& step) {
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      if (step.inputs[i] < 0) continue;
      auto& planned = values_[step.inputs[i]];
      if (!std::exchange(planned.unchecked, false)) continue;
      if (hash_of(planned.bytes) != planned.hash) throw_refilled(*step.op, step.op->refs_in[i]);
    }
  }

  static void lock_bytes(PlannedValue& planned) {
    planned.locked = true;
    ++planned.value->locks;
  }
  static void unlock(TapeLock& lock, PlannedValue& planned) {
    if (!std::exchange(planned.locked, false)) return;
    --planned.value->locks;
    touch(lock, planned.value);
  }

  // Whether the look that is under way sees it for the first time.
  bool comes_first(PlannedValue& planned) const { return std::exchange(planned.look, look_) != look_; }

  void tell_replayed(const Op& op, const Written& written) const {
    auto* listener = step_listener();
    if (!listener) return;
    Value* consumed = nullptr;
    for (const auto& [index, storage] : written)
      if (values_[index].bytes.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) consumed = values_[index].value;
    TapeLock lock;
    listener->replayed(lock, op, consumed);
  }

  void tell_dropped(const PlannedValue& planned) const {
    auto* listener = step_listener();
    if (!listener || !planned.ours || planned.written >= 0) return;  // overwritten and consumed, it has gone already
    TapeLock lock;
    listener->dropped(lock, *planned.value);
  }

  // Nothing in this pass reads it any more.
  static void let_go(PlannedValue& planned) {
    if (planned.locked) {
      TapeLock lock;
      unlock(lock, planned);
    }
    planned.bytes = {};
  }

  PlannedValue& entry(Value* value) {
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

  void add_input(const Op& op, const ArgRef& ref, std::vector<int32_t>& todo) {
    const bool moved = ref.version_moved();
    if (ref.kept.defined() && moved) throw_changed(op, ref);
    auto* value = ref.value;
    if (!value) return;
    if (value->is_leaf() && moved && !value->private_copy && !value->parked) throw_changed(op, ref);
    if (value->mark == number_) return;
    auto bytes = moved && !value->private_copy ? c10::Storage() : resident(*value);
    if (!bytes && !value->producer && !value->parked) {
      if (value->hashed) throw_refilled(op, ref);
      throw_lost(*value, &op);
    }
    auto& planned = entry(value);
    planned.bytes = std::move(bytes);
    planned.unchecked = value->hashed && value->is_leaf() && !value->private_copy && planned.bytes;
    planned.hash = value->hash;
    if (!planned.bytes && !planned.offloaded) todo.push_back(value->plan_index);
  }

  static bool is_cap(const Region* region) { return region && region->cap; }
  // Whose words an error is in: a budget has a cap too.
  static const char* recorded_by(const Region* region) { return is_cap(region) ? "refrain::MemoryCap" : "refrain::checkpoint"; }

  [[noreturn]] static void throw_changed(const Op& op, const ArgRef& ref) {
    const c10::IntArrayRef sizes(ref.meta.sizes_and_strides.sizes_data(), ref.meta.sizes_and_strides.size());
    const bool cap = is_cap(op.region);
    throw CheckpointError(fmt::format(
        "[{}] {} `{}`, but its argument {} (a {} tensor of size {}, {}) was changed since {}: it is at version {}, expected version {}. {}, or pass a clone.",
        recorded_by(op.region), cap ? "recomputing what the cap or budget has evicted must replay" : "backward must replay", op.traits->name(), ref.arg,
        c10::toString(ref.meta.dtype.toScalarType()), c10::str(sizes),
        cap ? "which no operator under the cap or budget made" : "read from outside the region", cap ? "then, unseen" : "forward",
        ref.counter.current_version(), ref.version,
        cap ? "Change it by operators of a thread under the cap" : "Move the change after backward"));
  }

  [[noreturn]] static void throw_refilled(const Op& op, const ArgRef& ref) {
    const c10::IntArrayRef sizes(ref.meta.sizes_and_strides.sizes_data(), ref.meta.sizes_and_strides.size());
    throw CheckpointError(fmt::format(
        "[refrain::checkpoint] `{}` must be replayed, but its argument {} (a {} tensor of size {}, read from outside) holds other bytes "
        "than it read: it was filled again through a pointer, and there is no copy. Ask for the pointer anew before each write "
        "(`data_ptr()`), so that it is seen and the bytes are copied in time; if it was, raise the bound of `set_leaf_write_policy`. Or pass "
        "a clone, or move the change after backward.",
        op.traits->name(), ref.arg, c10::toString(ref.meta.dtype.toScalarType()), c10::str(sizes)));
  }

  [[noreturn]] static void throw_lost(const Value& value, const Op* op) {
    const auto* region = op ? op->region : value.region;
    const bool cap = is_cap(region);
    throw CheckpointError(fmt::format(
        "[{}] {} needs {} bytes that {}{} and have been overwritten since without a copy. Move the change after backward, pass a clone, or raise the bound "
        "of `set_leaf_write_policy`.",
        recorded_by(region), cap ? "recomputing what the cap or budget has evicted" : "backward", value.nbytes,
        cap ? "no operator under the cap or budget made" : "were read from outside the region",
        op ? fmt::format("{}`{}`", cap ? ", were read by " : " by ", op->traits->name()) : std::string()));
  }

  void run_step(Step& step) {
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
    const ReplayedOp replayed(op);
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

  static c10::IValue list_of(const Op& op, size_t arg, std::vector<at::Tensor>&& tensors) {
    const auto& type = op.traits->handle.schema().arguments()[arg].type();
    const auto* list = type->kind() == c10::TypeKind::OptionalType ? type->containedTypes()[0].get() : type.get();
    if (list->containedTypes()[0]->kind() == c10::TypeKind::TensorType) return c10::IValue(std::move(tensors));
    c10::List<std::optional<at::Tensor>> optionals;
    for (auto& tensor : tensors)
      optionals.push_back(tensor.defined() ? std::optional<at::Tensor>(std::move(tensor)) : std::nullopt);
    return optionals;
  }

  // Lists of which no element was defined have no reference of their own.
  static void fill_empty_lists(const Op& op, torch::jit::Stack& stack) {
    for (const size_t arg : op.traits->tensor_lists)
      if (stack[arg].isInt())
        stack[arg] = list_of(op, arg, std::vector<at::Tensor>(stack[arg].toInt()));
  }

  // Memory in which the operator may overwrite this value: the value's own if this pass made it and no slot wants it, else
  // a copy. No later operator reads the old value: what was recorded after the write reads the new one.
  void writable(int32_t index, Written& written) {
    auto& planned = values_[index];
    if (planned.written >= 0) return;
    planned.written = static_cast<int32_t>(written.size());
    const bool consume = planned.ours && !planned.target;
    written.emplace_back(index, consume ? planned.bytes : clone_storage(planned.bytes));
  }

  at::Tensor tensor_of(const Step& step, size_t i, const Written& written,
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

  static void run_kernel(const Op& op, torch::jit::Stack& stack) {
    const Unwarned unwarned;
    if (!op.rng) return op.traits->handle.redispatchBoxed(op.keys, &stack);
    RngReplayScope rng(*op.rng);
    op.traits->handle.redispatchBoxed(op.keys, &stack);
  }

  void collect(const Step& step, const torch::jit::Stack& stack, const c10::SmallVectorImpl<c10::Storage>& storages) {
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
      if (Tape::get().cap.load(std::memory_order_relaxed)) put_in_place(planned);
    }
  }

  // An evicted value is back for all, not for this pass only: backward, which goes the other way, will want it soon.
  static void put_in_place(PlannedValue& planned) {
    TapeLock lock;
    if (!put_back(lock, planned.value, planned.bytes)) return;
    planned.ours = false;
    lock_bytes(planned);
  }

  const uint64_t number_;
  int64_t operators_run_ = 0;
  uint32_t look_ = 0;
  std::vector<PlannedValue> values_;
  std::vector<Op*> ops_;
  std::vector<Step> steps_;
};

// --- filling a region -------------------------------------------------------------------------------------------------

void drop_unread(TapeLock& lock, Region* region) {
  for (auto* slot = region->slots; slot; slot = slot->in_region.next) lock.discard(std::move(slot->filled));
  release_bound_holds(lock, region);
  for (auto* child : region->children) release_bound_holds(lock, child);
}

// Cleans up when the graph task lets go of its callback: at its end, or when it failed.
struct Cleanup {
  explicit Cleanup(Region* r) : region(r) { ++region->refs; }
  ~Cleanup() {
    TapeLock lock;
    drop_unread(lock, region);
    lock.release(region);
  }
  Cleanup(const Cleanup&) = delete;
  Cleanup& operator=(const Cleanup&) = delete;
  Region* region;
};

// Bytes that this graph task brings back and does not read are dropped when it ends.
void drop_unread_after(Region* region, int32_t task) {
  if (region->cleanup_task == task) return;
  region->cleanup_task = task;
  torch::autograd::Engine::get_default_engine().queue_callback(
      [cleanup = std::make_shared<Cleanup>(region)]() mutable { cleanup.reset(); });
}

void install_bytes(TapeLock& lock, Value* value, const c10::Storage& bytes) {
  if (value->key) unmap_value(lock, value);
  if (value->armed) disarm_alive(value);
  value->storage = bytes.getWeakStorageImpl();
  value->stale = false;
  value->counter = c10::VariableVersion(c10::VariableVersion::DISABLED);
  map_value(lock, value, bytes.unsafeGetStorageImpl(), false);
}

class FillingScope {
 public:
  explicit FillingScope(Region* region) : region_(region) {
    region_->filling = true;
    ++region_->refs;
  }
  void finish(TapeLock& lock) {
    region_->filling = false;
    lock.tape().filled.notify_all();
    lock.release(region_);
  }

 private:
  Region* region_;
};

// What slots read from a bound stays with them; the bounds themselves have done their work until the next backward.
void keep_bounds_read(TapeLock& lock, Region* region, Slot* asked, int32_t task) {
  if (task < 0) return;
  for (auto* slot = region->slots; slot; slot = slot->in_region.next)
    if ((slot == asked || slot->read_task != task) && slot->value && !slot->filled && !slot->value->is_leaf())
      slot->fill(resident(*slot->value));
  release_bound_holds(lock, region);
  drop_unread_after(region, task);
}

// Replays what `region`'s unread slots (or only `asked`, outside a graph task) and the bounds of its nested regions need.
// @param output  to bring back as well, or null: its storage is returned.
c10::Storage fill_region(TapeLock& lock, Region* region, Slot* asked, int32_t task, Value* output = nullptr) {
  Plan plan(lock);
  bool any = false;
  if (output) {
    plan.want(output);
    any = true;
  }
  for (auto* slot = region->slots; slot; slot = slot->in_region.next) {
    const bool unread = task >= 0 && slot->read_task != task;
    if (slot != asked && !unread) continue;
    if (!slot->value || slot->filled || slot->value->unknown || slot->value->evicted || resident(*slot->value)) continue;
    if (slot->value->is_leaf() && !slot->value->parked) continue;
    plan.want(slot->value);
    any = true;
  }
  for (auto* child : region->children) {
    if (child->live_slots == 0) continue;
    for (auto& bound : child->bounds) {
      if (bound.value->is_leaf() || resident(*bound.value)) continue;
      plan.want(bound.value);
      any = true;
    }
  }
  if (!any) {
    keep_bounds_read(lock, region, asked, task);
    return {};
  }
  c10::Storage brought;
  FillingScope filling(region);
  const auto start = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  try {
    plan.close(lock);
    plan.lock_inputs();
    lock.raw().unlock();
    const RecomputeScope recompute(region->work.get());
    at::ThreadLocalStateGuard state(*region->thread_state);
    plan.run();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!lock.raw().owns_lock()) lock.raw().lock();
  if (!failure) {
    for (const auto& planned : plan.values()) {
      if (!planned.target) continue;
      auto* value = planned.value;
      auto bytes = planned.bytes;
      // what was fetched with all ranks, and is here too: autograd, and who writes to it, have the tensor
      if (auto own = value->parked && value->key && !value->stale ? value->storage.lock() : nullptr)
        bytes = c10::Storage(std::move(own));
      else
        install_bytes(lock, value, bytes);
      if (value == output) brought = bytes;
      for (auto* slot = value->slots; slot; slot = slot->in_value.next)
        if (slot->region == region && (slot == asked || (task >= 0 && slot->read_task != task))) slot->fill(bytes);
      lock.discard(std::move(bytes));
    }
    for (auto* child : region->children) {
      if (child->live_slots == 0) continue;
      for (auto& bound : child->bounds) {
        if (bound.holds || bound.value->is_leaf()) continue;
        bound.holds = true;
        hold(lock, bound.value);
      }
    }
    keep_bounds_read(lock, region, asked, task);
    lock.tape().stats.replay_ns +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
  }
  plan.clear(lock);
  filling.finish(lock);
  if (failure) std::rethrow_exception(failure);
  return brought;
}

bool bounds_resident(const Region* region) {
  return std::all_of(region->bounds.begin(), region->bounds.end(),
                     [](const auto& bound) { return bound.value->is_leaf() || resident(*bound.value); });
}

void wait_until_idle(TapeLock& lock, Region* region) {
  while (region->filling) lock.tape().filled.wait(lock.raw());
}

// Enclosing regions first: what `region` reads from them must be there.
void fill_enclosing(TapeLock& lock, Region* region, int32_t task) {
  std::vector<Region*> missing;
  for (auto* at = region; at->parent && !bounds_resident(at); at = at->parent) missing.push_back(at->parent);
  for (auto it = missing.rbegin(); it != missing.rend(); ++it) {
    wait_until_idle(lock, *it);
    fill_region(lock, *it, nullptr, task);
  }
}

// The regions whose discarded outputs `region` reads, from the first in forward order on; each brings back what its own slots
// need too, as backward comes to it next.
void fill_discarded(TapeLock& lock, Region* region, int32_t task) {
  struct Missing {
    Region* reader;
    size_t bound;
    uint64_t seq;
  };
  std::vector<Region*> readers{region->top};
  std::vector<Missing> missing;
  for (size_t r = 0; r < readers.size(); ++r) {
    auto* reader = readers[r];
    for (size_t i = 0; i < reader->bounds.size(); ++i) {
      auto* value = reader->bounds[i].value;
      if (!value->discard || !value->producer || reader->bounds[i].holds || resident(*value)) continue;
      missing.push_back({reader, i, value->producer->seq});
      auto* source = value->region->top;
      if (std::find(readers.begin(), readers.end(), source) == readers.end()) readers.push_back(source);
    }
  }
  std::sort(missing.begin(), missing.end(), [](const auto& a, const auto& b) { return a.seq < b.seq; });
  for (const auto& [reader, i, seq] : missing) {
    auto* value = reader->bounds[i].value;
    wait_until_idle(lock, value->region);
    auto bytes = resident(*value);
    if (!bytes && value->producer) {
      fill_enclosing(lock, value->region, task);
      bytes = fill_region(lock, value->region, nullptr, task, value);
    }
    if (!std::exchange(reader->bounds[i].holds, true)) hold(lock, value);
    lock.discard(std::move(bytes));
  }
}

}  // namespace

namespace {

std::unique_lock<std::mutex> one_pass() {
  static auto& mutex = make_mutex_for_forks(ForkOrder::kPass);
  return std::unique_lock(mutex);
}

void count_pass(TapeLock& lock, std::chrono::steady_clock::time_point start, int64_t operators, int64_t demand) {
  const int64_t took =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
  add_pass(lock, {demand, took});
  cap_counters().recomputes += operators;
  cap_counters().recompute_ns += took;
}

// One attempt. @return false if something the pass was to read left memory meanwhile.
bool try_bring_back(const std::vector<Value*>& values, bool lock_inputs) {
  TapeLock lock;
  collect_gone(lock);
  Plan plan(lock);
  bool any = false;
  int64_t demand = 0;
  for (auto* value : values) {
    if (!value->evicted) continue;
    plan.want(value);
    any = true;
    demand = std::max(demand, value->demand);
  }
  if (!any) return true;
  const auto start = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  bool is_whole = true;
  try {
    plan.close(lock);
    if (lock_inputs) plan.lock_inputs();
    lock.raw().unlock();
    plan.run();
  } catch (const Plan::InputLeft&) {
    is_whole = false;
  } catch (...) {
    failure = std::current_exception();
  }
  if (!lock.raw().owns_lock()) lock.raw().lock();
  count_pass(lock, start, plan.operators_run(), demand);
  plan.clear(lock);
  if (failure) std::rethrow_exception(failure);
  return is_whole;
}

}  // namespace

void bring_back(const std::vector<Value*>& values) {
  before_pass();
  const auto pass = one_pass();
  constexpr int kMostAttempts = 16;
  for (int attempt = 1; !try_bring_back(values, attempt == kMostAttempts); ++attempt) {
  }
}

std::vector<Remade> run_again(Op& op, Value* consumed, c10::Storage&& bytes) {
  const auto pass = one_pass();
  TapeLock lock;
  collect_gone(lock);
  Plan plan(lock);
  bool any = false;
  for (const auto& out : op.outs) {
    if (!out.value || resident(*out.value)) continue;
    plan.want(out.value);
    any = true;
  }
  std::vector<Remade> made;
  if (!any) return made;
  const auto start = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  try {
    plan.close(lock);
    plan.lock_inputs();
    if (consumed) plan.consume(consumed);
    lock.raw().unlock();
    bytes = {};
    plan.run();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!lock.raw().owns_lock()) lock.raw().lock();
  count_pass(lock, start, plan.operators_run(), 0);
  if (!failure)
    for (const auto& planned : plan.values()) {
      if (!planned.target || !planned.ours) continue;
      install_bytes(lock, planned.value, planned.bytes);
      made.push_back({planned.value, planned.bytes});
    }
  plan.clear(lock);
  if (failure) std::rethrow_exception(failure);
  return made;
}

void refill(TapeLock& lock, Slot& slot) {
  auto* region = slot.region;
  const int32_t task = torch::autograd::get_current_graph_task_id();
  const auto back = [&] {
    if (!slot.filled) slot.fill(resident(*slot.value));
    return static_cast<bool>(slot.filled);
  };
  for (;;) {
    wait_until_idle(lock, region);
    if (back()) return;
    fill_discarded(lock, region, task);
    if (back()) return;
    fill_enclosing(lock, region, task);
    if (back()) return;
    if (region->filling) continue;
    fill_region(lock, region, &slot, task);
    if (back()) return;
    throw CheckpointError(
        "[refrain::checkpoint] a saved tensor could not be brought back: its bytes were never written by an operator and "
        "are gone. Keep the tensor alive until an operator has read it.");
  }
}

}  // namespace refrain::tape
