#include "tape/tape.h"

#include <algorithm>

#include "base/fork.h"
#include "memory/block.h"
#include "memory/stack.h"
#include "refrain/memory.h"
#include "tape/engine.h"
#include "tape/evict.h"
#include "tape/slots.h"
#include "tape/step_listener.h"
#include "tape/storage_copy.h"

namespace refrain::tape {

namespace {

void begin_in_forked_child() {
  new (&Tape::get().filled) std::condition_variable;  // who waited has not come along
  forget_listener();
}

}  // namespace

Tape::Tape() {
  lock_at_fork(ForkOrder::kTape, mutex);
  call_in_forked_child(ForkCall::kTape, &begin_in_forked_child);
}

Saver::Saver() : hook_depth(saved_hook_depth()) {}

ThreadState::~ThreadState() {
  if (unsettled.empty() && unknown_slots.empty()) return;
  TapeLock lock;
  settle(lock, *this);
}

thread_local ThreadState* ThreadState::current = nullptr;

ThreadState& ThreadState::make() {
  // A thread's last tensors may die after its guard: they get a state that stays.
  struct Guard {
    ~Guard() { delete std::exchange(current, nullptr); }
  };
  current = new ThreadState;
  static thread_local Guard guard;
  (void)guard;
  return *current;
}

void ThreadState::opened(const OpenScope& scope) {
  open.push_back(scope);
  follow_open();
}

bool ThreadState::closed(const void* owner) {
  const auto others = std::erase_if(open, [&](const auto& scope) { return scope.owner == owner; });
  follow_open();
  return others > 0;
}

void ThreadState::follow_open() {
  region = nullptr;
  saver = nullptr;
  trace = nullptr;
  draws = nullptr;
  open_reruns = 0;
  for (const auto& scope : open) {
    if (scope.region) {
      region = scope.region;
      saver = nullptr;  // what is saved in a region is the region's
    }
    if (scope.saver) saver = scope.saver;
    if (scope.trace) trace = scope.trace;
    if (scope.draws) draws = scope.draws;
    open_reruns += scope.is_rerun;
  }
}

// --- letting go -------------------------------------------------------------------------------------------------------

void TapeLock::finish() {
  if (lock_.owns_lock()) {
    drain();
    lock_.unlock();
  }
  if (!let_go_) return;
  for (auto* op : let_go_->buried_ops) tape_.ops.drop(op);
  for (auto* region : let_go_->buried_regions) delete region;
}

void TapeLock::drain() {
  collect_gone(*this);
  if (!let_go_) return;
  auto& [dead_values, dead_ops, dead_regions, storages, bytes, offloaded, buried_ops, buried_regions] = *let_go_;
  for (;;) {
    if (!dead_values.empty()) {
      auto* value = dead_values.back();
      dead_values.pop_back();
      if (value->refs == 0) destroy(value);
    } else if (!dead_ops.empty()) {
      auto* op = dead_ops.back();
      dead_ops.pop_back();
      take_apart(op);
    } else if (!dead_regions.empty()) {
      auto* region = dead_regions.back();
      dead_regions.pop_back();
      release_marked(*this, region);
      for (auto& bound : region->bounds) {
        if (bound.holds) unhold(*this, bound.value);
        release(bound.value);
      }
      if (region->parent) {
        auto& siblings = region->parent->children;
        siblings.erase(std::find(siblings.begin(), siblings.end(), region));
        release(region->parent);
      }
      --tape().stats.live_regions;
      buried_regions.push_back(region);
    } else {
      return;
    }
  }
}

void TapeLock::destroy(Value* value) {
  unmap_value(*this, value);
  if (value->touched) tape().touched[value->touched_index] = nullptr;
  if (value->queued) tape().candidates->remove(*value);
  if (value->armed) disarm_alive(value);
  if (value->discard) tape().discardable.fetch_sub(1, std::memory_order_relaxed);
  if (value->private_copy) tape().stats.leaf_copy_bytes -= static_cast<int64_t>(value->nbytes);
  discard(std::move(value->held));
  discard(std::move(value->offloaded));
  if (value->producer) {
    value->producer->outs[value->out].value = nullptr;
    release(value->producer);
  }
  if (auto* region = value->region) {
    region->values[value->region_index] = region->values.back();
    region->values[value->region_index]->region_index = value->region_index;
    region->values.pop_back();
    release(region);
  }
  --tape().stats.live_values;
  tape().values.drop(value);
}

void TapeLock::take_apart(Op* op) {
  for (auto& ref : op->refs_in) {
    if (!ref.value) continue;
    if (!op->region->cap) --ref.value->op_refs;
    if (ref.holds) unhold(*this, ref.value);
    release(ref.value);
  }
  if (op->region) release(op->region);
  --tape().stats.live_ops;
  let_go().buried_ops.push_back(op);
}

// --- values -----------------------------------------------------------------------------------------------------------

Value* value_of(TapeLock& lock, const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  if (auto* known = find_value(lock, storage.unsafeGetStorageImpl())) return known;
  auto* value = lock.tape().values.make(storage);
  ++lock.tape().stats.live_values;
  map_value(lock, value, storage.unsafeGetStorageImpl(), false);
  return value;
}

void hold(TapeLock&, Value* value) {
  if (value->holds++ == 0 && !value->held && !value->parked) {
    if (!value->stale) {
      if (auto strong = value->storage.lock()) value->held = c10::Storage(std::move(strong));
    }
  }
}

void unhold(TapeLock& lock, Value* value) {
  if (--value->holds > 0) return;
  if (!value->private_copy || !value->is_leaf()) lock.discard(std::move(value->held));
  touch(lock, value);
}

void sweep_map(TapeLock& lock) {
  auto& map = lock.tape().map;
  std::vector<Value*> gone;
  map.for_each([&](Value* value) {
    if (value->storage.expired()) gone.push_back(value);
  });
  for (auto* value : gone) unmap_value(lock, value);
  lock.tape().sweep_at = std::max<size_t>(1024, 2 * map.size());
}

void map_value(TapeLock& lock, Value* value, c10::StorageImpl* storage, bool owning) {
  auto& tape = lock.tape();
  if (tape.map.size() >= tape.sweep_at) sweep_map(lock);
  if (auto* before = tape.map.find(storage)) unmap_value(lock, before);
  tape.map.insert(storage, value);
  value->key = storage;
  if (!owning && value->map_owns) value->owed = true;  // `disown` left it to the memory
  value->map_owns = owning;
  if (!owning) return;
  retain(value);
  if (value->region && value->region->cap) tag(value, storage);
}

void tag(Value* value, c10::StorageImpl* storage) {
  auto& data = storage->_mutable_data_ptr_no_checks();
  if (!is_tracked(data)) return;
  void* before = Block::of(data.get()).owner.exchange(value);
  value->tagged = true;
  // a copy-on-write copy has taken over the memory of another storage: that one's value is told as if it had been freed
  if (before && before != value) Block::owner_died.load()(before);
}

bool untag(Value* value, c10::StorageImpl* storage) {
  if (!value->tagged) return true;
  auto& data = storage->_mutable_data_ptr_no_checks();
  if (!is_tracked(data)) return false;
  void* owner = value;
  if (!Block::of(data.get()).owner.compare_exchange_strong(owner, nullptr)) return false;
  value->tagged = false;
  return true;
}

void disown(TapeLock& lock, Value* value) {
  if (!value->map_owns) return;
  if (value->tagged) {
    const auto storage = value->storage.lock();
    if (!storage || !untag(value, storage.get())) return;  // the memory tells, or has told, `collect_gone`
  }
  value->map_owns = false;
  lock.release(value);
}

void unmap_value(TapeLock& lock, Value* value) {
  if (!value->key) return;
  lock.tape().map.erase(std::exchange(value->key, nullptr), value);
  disown(lock, value);
}

c10::Storage resident(const Value& value) {
  if (value.evicted) return {};
  // whether all ranks fetch must not depend on who else has the bytes on one of them, a communication thread for one
  if (value.lost || (value.parked && value.offloaded->needs_all_ranks())) return {};
  if (!value.private_copy && !value.is_leaf() && value.version_moved()) return {};
  if (value.held) return value.held;
  if (value.stale) return {};
  auto strong = value.storage.lock();
  return strong ? c10::Storage(std::move(strong)) : c10::Storage();
}

void make_leaf(TapeLock& lock, Value* value) {
  if (!value->unknown) return;
  value->unknown = false;
  if (value->armed) disarm_alive(value);
  for (auto* slot = value->slots; slot; slot = slot->in_value.next) {
    if (slot->holds) continue;
    slot->holds = true;
    hold(lock, value);
  }
  disown(lock, value);
}

Value* overwritten(TapeLock& lock, Value* before, c10::Storage&& copy, Value* after) {
  auto* storage = before->key;
  if (before->armed && storage) disarm(before, storage);
  for (auto* slot = before->slots; slot; slot = slot->in_value.next)
    if (slot->filled && slot->filled.unsafeGetStorageImpl() == storage) lock.discard(std::move(slot->filled));
  retain(before);
  unmap_value(lock, before);
  before->stale = before->replaced = true;
  if (before->is_leaf() || (before->unknown && !after)) {
    before->unknown = false;
    if (before->private_copy || before->parked || before->exposed) {
      // The tape has bytes of its own, or a hash of them.
    } else if (copy) {
      lock.discard(std::exchange(before->held, std::move(copy)));
      before->private_copy = true;
      ++lock.tape().stats.leaf_copies;
      lock.tape().stats.leaf_copy_bytes += static_cast<int64_t>(before->nbytes);
    } else {
      before->lost = true;
      lock.discard(std::move(before->held));
    }
  } else {
    before->lost = before->unknown;
    before->unknown = false;
    lock.discard(std::exchange(before->held, std::move(copy)));
    if (before->held) {
      before->private_copy = true;
      ++lock.tape().stats.leaf_copies;
      lock.tape().stats.leaf_copy_bytes += static_cast<int64_t>(before->nbytes);
    }
  }
  if (before->slots && !after && storage) {
    // The tape did not see what was written: the new bytes are a leaf.
    if (auto strong = before->storage.lock()) {
      after = lock.tape().values.make(c10::Storage(std::move(strong)));
      ++lock.tape().stats.live_values;
      map_value(lock, after, storage, false);
    }
  }
  Value* moved_to = before->slots ? after : nullptr;
  if (moved_to || (after && after->producer)) {
    retain(before);
    retain(after);
    // Its tensor may be gone before the bump is known.
    const bool holds = after->is_leaf();
    if (holds) hold(lock, after);
    ThreadState::get().unsettled.push_back({before, after, holds});
  }
  lock.release(before);
  return moved_to;
}

namespace {

void add_bound(Region* region, Value* value) {
  const auto& bounds = region->bounds;
  const auto recent = bounds.end() - std::min<ptrdiff_t>(16, static_cast<ptrdiff_t>(bounds.size()));
  if (std::any_of(recent, bounds.end(), [&](const auto& bound) { return bound.value == value; })) return;
  retain(value);
  region->bounds.push_back({value, false});
}

}  // namespace

bool should_copy(TapeLock& lock, const Value& value, int32_t own_refs) {
  const bool from_outside = value.is_leaf() || (value.region && value.region->cap && value.producer);
  if (!from_outside || value.op_refs <= own_refs || value.lost || value.parked || value.private_copy) return false;
  auto& tape = lock.tape();
  return tape.leaf_write_policy == LeafWritePolicy::kCopy &&
         tape.stats.leaf_copy_bytes + static_cast<int64_t>(value.nbytes) <= tape.max_leaf_copy_bytes;
}

bool needs_hold(TapeLock&, Value* value, Region* region) {
  if (region && region->cap) return false;
  if (value->region && value->region->cap) return !value->unknown;
  if (value->is_leaf() || value->saved) return true;
  if (value->unknown) return false;
  if (!region) return true;  // of an `OffloadScope`: nothing is replayed for it
  if (value->region->top != region->top) {
    if (value->discard) {
      add_bound(region->top, value);
      return false;
    }
    const auto* producer = value->producer;
    const bool cast_of_leaf = producer->traits->cast && producer->refs_in.size() == 1 &&
                              producer->refs_in[0].value && producer->refs_in[0].value->is_leaf();
    return !cast_of_leaf;
  }
  // A bound of every region between this one and the one that encloses both.
  for (auto* at = region; at; at = at->parent) {
    auto* up = value->region;
    while (up && up != at) up = up->parent;
    if (up) break;
    add_bound(at, value);
  }
  return false;
}

void let_discard(Value* value) {
  if (std::exchange(value->discard, true)) return;
  Tape::get().discardable.fetch_add(1, std::memory_order_relaxed);
}

void keep_marked(TapeLock& lock, Value* value, Region* region) {
  if (value->saved || value->is_leaf()) return;
  value->saved = true;
  retain(value);
  hold(lock, value);
  region->marked.push_back(value);
}

// --- the raw-pointer barrier ------------------------------------------------------------------------------------------

namespace {

template <typename S>
concept HasMaterializer = requires(S& s) {
  s.has_materializer();
  s.clear_materializer();
};

c10::Storage try_clone(c10::StorageImpl* storage) {
  try {
    return clone_storage(c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage)));
  } catch (...) {  // no room: a hash must do
    return {};
  }
}

// Somebody outside the dispatcher asked for a pointer to write through; nothing is written yet.
void raw_write(c10::StorageImpl* storage) {
  Value* value = nullptr;
  bool is_needed = false, copy_wanted = false;
  {
    TapeLock lock;
    value = find_value(lock, storage);
    if (!value || !value->armed) return;
    retain(value);
    is_needed = value->needed > 0 && !ThreadState::get().recomputing;  // one pass at a time
  }
  try {
    if (is_needed) bring_back_dependents(value);
  } catch (...) {
    TapeLock lock;
    lock.release(value);
    throw;  // nothing is written
  }
  {
    TapeLock lock;
    disarm(value, storage);  // LibTorch clears the barrier itself after this call
    copy_wanted = should_copy(lock, *value, 0);
    is_needed = value->is_leaf() && value->op_refs > 0 && !value->private_copy && !value->parked && !value->lost;
  }
  // without the lock: it allocates, and a device may have to be waited for
  auto copy = copy_wanted ? try_clone(storage) : c10::Storage();
  const bool exposed = is_needed && !copy;
  const uint64_t hash = exposed ? hash_of(c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage))) : 0;
  TapeLock lock;
  if (value->key == storage) {
    if (exposed && value->held) {
      value->exposed = value->hashed = true;
      value->hash = hash;
    }
    overwritten(lock, value, std::move(copy), nullptr);
    settle(lock, ThreadState::get());
  }
  lock.discard(std::move(copy));
  lock.release(value);
}

template <typename S>
void set_barrier(S* storage, bool on) {
  if constexpr (HasMaterializer<S>) {
    if (on)
      storage->set_materializer(&raw_write);
    else
      storage->clear_materializer();
  }
}

template <typename S>
bool barrier_is_set(const S* storage) {
  if constexpr (HasMaterializer<S>) return storage->has_materializer();
  return false;
}

}  // namespace

bool has_barrier(const c10::StorageImpl* storage) { return barrier_is_set(storage); }

void arm(Value* value, c10::StorageImpl* storage) {
  if (!HasMaterializer<c10::StorageImpl> || value->armed || has_barrier(storage)) return;
  set_barrier(storage, true);
  value->armed = true;
}

void disarm(Value* value, c10::StorageImpl* storage) {
  if (!std::exchange(value->armed, false)) return;
  set_barrier(storage, false);
}

void disarm_alive(Value* value) {
  if (auto strong = value->storage.lock())
    disarm(value, strong.get());
  else
    value->armed = false;
}

// --- settling ---------------------------------------------------------------------------------------------------------

void settle_writes(TapeLock& lock, ThreadState& thread) {
  for (size_t i = 0; i < thread.unsettled.size(); ++i) {
    auto [before, after, holds] = thread.unsettled[i];
    for (auto* slot = before->slots; slot;) {
      auto* next = slot->in_value.next;
      if (!slot->version_bumped()) {
        // Plain autograd would read the new bytes; so do we.
        slot->detach(lock);
        slot->attach(lock, after, needs_hold(lock, after, slot->region));
      }
      slot = next;
    }
    if (after->producer && after->counter.enabled()) after->version = after->counter.current_version();
    if (holds) unhold(lock, after);
    lock.release(before);
    lock.release(after);
  }
  thread.unsettled.clear();
}

void settle_unknown(TapeLock& lock, ThreadState& thread) {
  for (auto* value : thread.unknown_slots) {
    if (value->unknown && value->slots) make_leaf(lock, value);
    unhold(lock, value);
    lock.release(value);
  }
  thread.unknown_slots.clear();
}

void settle(TapeLock& lock, ThreadState& thread) {
  settle_writes(lock, thread);
  settle_unknown(lock, thread);
}

}  // namespace refrain::tape

namespace refrain {

bool set_check_inputs(bool on) { return tape::Tape::get().check_inputs.exchange(on); }

}  // namespace refrain
