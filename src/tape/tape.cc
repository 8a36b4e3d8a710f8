#include "tape/tape.h"

#include <algorithm>

#include "base/fork.h"
#include "intercept/storage_barrier.h"
#include "memory/block.h"
#include "memory/stack.h"
#include "tape/cap_hooks.h"

namespace refrain::tape {

namespace {

void begin_in_forked_child() {
  new (&Tape::get().filled) std::condition_variable_any;  // its waiters are threads of the parent
}

}  // namespace

Tape::Tape() {
  lock_at_fork(mutex);
  call_in_forked_child(ForkCall::kTape, &begin_in_forked_child);
}

// --- releasing -------------------------------------------------------------------------------------------------------

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

void release_marked(TapeLock& lock, Region* region) {
  for (auto* value : std::exchange(region->marked, {})) {
    unhold(lock, value);
    lock.release(value);
  }
}

// --- values -----------------------------------------------------------------------------------------------------------

void release_all(std::vector<Value*>& values) {
  if (values.empty()) return;
  TapeLock lock;
  for (auto* value : values) lock.release(value);
  values.clear();
}

Value* value_of(TapeLock& lock, const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  if (auto* known = find_value(lock, storage.unsafeGetStorageImpl())) return known;
  auto* value = lock.tape().values.make(storage);
  ++lock.tape().stats.live_values;
  map_value(lock, value, storage.unsafeGetStorageImpl(), false);
  return value;
}

void hold(TapeLock&, Value* value) {
  ++value->holds;
  // it may have had holds and nothing to hold: overwritten, and recomputed since
  if (value->held || value->is_in_store() || value->is_overwritten()) return;
  if (auto strong = value->storage.lock()) value->held = c10::Storage(std::move(strong));
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
  if (!owning && value->map_owns) value->owed = true;  // `disown` left the release to the memory
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
  // a copy-on-write copy has taken over the memory of another storage: for that one's value it counts as freed
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
    if (!storage || !untag(value, storage.get())) return;  // the memory's death reaches `collect_gone`
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
  if (value.is_evicted()) return {};
  // whether all ranks fetch must not depend on other owners of the bytes on one of them, such as a communication thread
  if (value.is_lost() || (value.is_in_store() && value.offloaded->needs_all_ranks())) return {};
  if (!value.private_copy && !value.is_leaf() && value.version_moved()) return {};
  if (value.held) return value.held;
  if (value.is_overwritten()) return {};
  auto strong = value.storage.lock();
  return strong ? c10::Storage(std::move(strong)) : c10::Storage();
}

void disarm(Value* value, c10::StorageImpl* storage) {
  if (!std::exchange(value->armed, false)) return;
  set_storage_barrier(storage, nullptr);
}

void disarm_alive(Value* value) {
  if (auto strong = value->storage.lock())
    disarm(value, strong.get());
  else
    value->armed = false;
}

void install_bytes(TapeLock& lock, Value* value, const c10::Storage& bytes) {
  if (value->key) unmap_value(lock, value);
  if (value->armed) disarm_alive(value);
  value->storage = bytes.getWeakStorageImpl();
  value->note_restored();
  value->counter = c10::VariableVersion(c10::VariableVersion::DISABLED);
  map_value(lock, value, bytes.unsafeGetStorageImpl(), false);
}

// --- memory that died -------------------------------------------------------------------------------------------------

void memory_died(void* context) {
  auto* value = static_cast<Value*>(context);
  prefetch(value);
  auto& gone = Tape::get().gone;
  value->next_gone = gone.load(std::memory_order_relaxed);
  while (!gone.compare_exchange_weak(value->next_gone, value, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

void collect_gone(TapeLock& lock) {
  auto& gone = lock.tape().gone;
  if (!gone.load(std::memory_order_relaxed)) return;
  for (auto* value = gone.exchange(nullptr, std::memory_order_acquire); value;) {
    auto* next = value->next_gone;
    if (next) prefetch(next->producer);
    if (std::exchange(value->owed, false)) {
      value->tagged = false;
      lock.release(value);
    } else if (value->is_evicted()) {
      unmap_value(lock, value);
      lock.tape().cap_hooks.load()->evicted_died(lock, value);
    } else {
      value->tagged = false;
      if (!value->key) {
        disown(lock, value);
      } else if (value->storage.expired()) {
        value->armed = false;
        unmap_value(lock, value);
      }
    }
    value = next;
  }
}

bool has_gone() { return Tape::get().gone.load() != nullptr; }

}  // namespace refrain::tape

namespace refrain {

bool set_check_inputs(bool on) { return tape::Tape::get().check_inputs.exchange(on); }

}  // namespace refrain
