#include "tape/barrier.h"

#include "intercept/storage_barrier.h"
#include "intercept/storage_copy.h"
#include "tape/cap.h"
#include "tape/lifetime.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

c10::Storage try_clone(c10::StorageImpl* storage) {
  try {
    return clone_storage(c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage)));
  } catch (...) {  // no memory: a hash instead
    return {};
  }
}

// Code outside the dispatcher requested a writable pointer; nothing is written yet.
void raw_write(c10::StorageImpl* storage) {
  Value* value = nullptr;
  bool is_needed = false, copy_wanted = false;
  {
    TapeLock lock;
    // What was saved before the last operator wrote it may be of these bytes.
    settle_writes(lock, ThreadState::get());
    value = find_value(lock, storage);
    if (!value || (kHasStorageBarrier && !value->armed)) return;
    retain(value);
    ++value->writers;  // to copy it may take room: what depends on it is not evicted for that
    is_needed = value->needed > 0 && !ThreadState::get().recomputing;  // one pass at a time
  }
  try {
    if (is_needed) cap_hooks().materialize_dependents(value);
  } catch (...) {
    TapeLock lock;
    --value->writers;
    lock.release(value);
    throw;  // nothing is written
  }
  {
    TapeLock lock;
    disarm(value, storage);  // LibTorch clears the barrier itself after this call
    copy_wanted = should_copy(lock, *value, 0);
    is_needed =
        value->is_leaf() && value->op_refs > 0 && !value->private_copy && !value->is_in_store() && !value->is_lost();
  }
  // without the lock: it allocates, and may wait for a device
  auto copy = copy_wanted ? try_clone(storage) : c10::Storage();
  const bool exposed = is_needed && !copy;
  const uint64_t hash =
      exposed ? hash_of(c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage))) : 0;
  TapeLock lock;
  if (value->key == storage) {
    if (exposed && value->held) {
      value->exposed = value->hashed = true;
      value->hash = hash;
    }
    auto& thread = ThreadState::get();
    overwritten(lock, value, std::move(copy), nullptr, thread.unsettled);
    settle(lock, thread);
  } else {
    lock.discard(std::move(copy));
  }
  --value->writers;
  lock.release(value);
}

}  // namespace

void arm(Value* value, c10::StorageImpl* storage) {
  if (!kHasStorageBarrier || value->armed || has_barrier(storage)) return;
  set_storage_barrier(storage, &raw_write);
  value->armed = true;
}

void about_to_write(c10::StorageImpl* storage) {
  if constexpr (kHasStorageBarrier)
    (void)storage->mutable_data();  // which the barrier takes for a write
  else
    raw_write(storage);
}

}  // namespace refrain::tape
