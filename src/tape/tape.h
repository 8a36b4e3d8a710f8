#pragma once

#include <ATen/ThreadLocalState.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ordered_mutex.h"
#include "refrain/checkpoint.h"
#include "refrain/tape.h"
#include "tape/pool.h"
#include "tape/value.h"

namespace torch::autograd {
struct SavedVariableHooks;
}

namespace refrain::tape {

class CapHooks;
class RegionWork;

/// A `checkpoint` call: what was saved in it, and whether a thread is recomputing it.
struct Region {
  /// A value this region reads from an enclosing or sibling region, or a discarded one of another; held from the replay
  /// of that region until ours.
  struct Bound {
    Value* value = nullptr;  ///< owned
    bool holds = false;
  };

  int32_t refs = 0;
  int32_t live_slots = 0;     ///< here and in nested regions
  bool active = true;         ///< its scope is open, or that of a region inside it
  bool is_open = true;        ///< its scope is open
  int32_t open_children = 0;  ///< that are active
  bool preserve_rng_state = true;
  bool cap = false;  ///< not a call: the region in which everything is recorded under a `MemoryCap`, see evict.h
  std::shared_ptr<const Policy> policy;
  std::shared_ptr<OffloadStore> offload;            ///< for what `policy` offloads
  std::shared_ptr<RegionWork> work;                 ///< of `CheckpointOptions::input_storage`, or null
  std::vector<Value*> inputs;                       ///< given to `work` to store; owned while the region is active
  bool selective = false;                           ///< on an outermost region: it or one inside has a policy
  int64_t judged = 0;                               ///< calls of `policy`
  std::unordered_map<std::string, int64_t> counts;  ///< of `OpContext::count`; this and `judged`: recording thread only
  Region* parent = nullptr;                         ///< owned
  Region* top = nullptr;                            ///< outermost enclosing region or itself; not owned
  size_t hook_depth = 0;                            ///< as `Saver::hook_depth`
  std::vector<Region*> children;                    ///< not owned
  std::vector<Bound> bounds;
  std::vector<Value*> marked;  ///< owned and held: kept by name, after the operators that read them may have run
  Slot* slots = nullptr;
  std::vector<Value*> values;  ///< produced here and alive; not owned
  bool filling = false;        ///< some thread is replaying for it
  int32_t cleanup_task = -2;   ///< graph task that will drop what it did not read
  std::unique_ptr<at::ThreadLocalState> thread_state;
};

class TapeLock;

/// Makes the hooks of a tensor that autograd saves in a region; with null, outside of all, where discarded outputs may
/// be read.
using SavedHooks = std::unique_ptr<torch::autograd::SavedVariableHooks> (*)(Region*);

/// Orders values that may be evicted. Called with the lock.
class Candidates {
 public:
  /// Removes a queued value that is about to be destroyed.
  virtual void remove(Value& value) = 0;
  virtual void clear() = 0;

 protected:
  ~Candidates() = default;
};

/// The process-wide tape. All members are guarded by `mutex` but the atomics.
struct Tape {
  Tape();
  static Tape& get() {
    static auto* const tape = new Tape;
    return *tape;
  }

  OrderedMutex mutex{LockOrder::kTape};
  std::condition_variable_any filled;
  StorageMap map;
  size_t sweep_at = 1024;
  uint64_t next_seq = 1;
  uint64_t plan_number = 0;
  Pool<Op> ops;
  Pool<Value> values;
  TapeStats stats;
  LeafWritePolicy leaf_write_policy = LeafWritePolicy::kCopy;
  int64_t max_leaf_copy_bytes = int64_t{64} << 20;
  std::atomic<int64_t> pending_slots{0};  ///< read without the lock to switch the watch off
  std::atomic<int64_t> discardable{0};    ///< live values with `discard`, read likewise
  std::atomic<bool> timing{false};
  std::atomic<bool> check_inputs{false};
  std::atomic<Region*> cap{nullptr};             ///< while there is a `MemoryCap` that records
  std::atomic<bool> rests{false};                ///< there is one, and it records nothing for now, see evict/rest.h
  std::atomic<CapHooks*> cap_hooks{nullptr};     ///< from the first `MemoryCap` of the process on
  std::atomic<SavedHooks> saved_hooks{nullptr};  ///< from the first region on
  Candidates* candidates = nullptr;              ///< from the first eviction on; until then `touched` stays empty
  std::vector<Value*> touched;        ///< made or used since `candidates` took them last; null where one has died
  std::atomic<Value*> gone{nullptr};  ///< evicted or tagged values whose memory died, linked; each owned; not guarded
};

/// The lock on the tape's bookkeeping, and the only way to release objects: those that die while it is held are
/// destroyed by a loop (never by recursion: chains are millions long), and their memory is freed after the lock is
/// released, because freeing may run foreign code. Never run an operator, allocate a tensor or free a storage while
/// holding it.
class TapeLock {
 public:
  TapeLock() : tape_(Tape::get()), lock_(tape_.mutex) {}
  ~TapeLock() {
#ifndef NDEBUG
    if (lock_.owns_lock()) check_some_values();
#endif
    if (let_go_ || tape_.gone.load(std::memory_order_relaxed)) finish();
  }
  TapeLock(const TapeLock&) = delete;
  TapeLock& operator=(const TapeLock&) = delete;

  Tape& tape() { return tape_; }
  std::unique_lock<OrderedMutex>& raw() { return lock_; }

  void release(Value* value) {
    if (--value->refs == 0) let_go().dead_values.push_back(value);
  }
  void release(Op* op) {
    if (--op->refs > 0) return;
    prefetch(op);
    let_go().dead_ops.push_back(op);
  }
  void release(Region* region) {
    if (--region->refs == 0) let_go().dead_regions.push_back(region);
  }
  void discard(c10::Storage&& storage) {
    if (storage) let_go().storages.push_back(std::move(storage));
  }
  void discard(at::DataPtr&& bytes) { let_go().bytes.push_back(std::move(bytes)); }
  void discard(std::shared_ptr<Offloaded>&& bytes) {
    if (bytes) let_go().offloaded.push_back(std::move(bytes));
  }

 private:
  struct LetGo {
    c10::SmallVector<Value*, 4> dead_values;
    c10::SmallVector<Op*, 4> dead_ops;
    std::vector<Region*> dead_regions;
    c10::SmallVector<c10::Storage, 4> storages;
    c10::SmallVector<at::DataPtr, 2> bytes;
    std::vector<std::shared_ptr<Offloaded>> offloaded;
    c10::SmallVector<Op*, 4> buried_ops;
    std::vector<Region*> buried_regions;
    LetGo() noexcept {}  // as that of `ArgRef`
  };
#ifndef NDEBUG
  void check_some_values();
#endif
  LetGo& let_go() { return let_go_ ? *let_go_ : let_go_.emplace(); }
  void finish();
  void drain();
  void destroy(Value* value);
  void take_apart(Op* op);

  Tape& tape_;
  std::unique_lock<OrderedMutex> lock_;
  std::optional<LetGo> let_go_;  ///< most locks release nothing
};

// --- values -----------------------------------------------------------------------------------------------------------

inline Value* find_value(TapeLock& lock, c10::StorageImpl* storage) { return lock.tape().map.find(storage); }
/// Finds the value in `tensor`'s storage; makes a leaf if the tape does not know it. @returns borrowed; retain before
/// unlocking.
Value* value_of(TapeLock& lock, const at::Tensor& tensor);
inline void retain(Value* value) { ++value->refs; }
/// Releases all values; takes the lock, unless there are none.
void release_all(std::vector<Value*>& values);
void hold(TapeLock& lock, Value* value);
void unhold(TapeLock& lock, Value* value);
void map_value(TapeLock& lock, Value* value, c10::StorageImpl* storage, bool owning);
void unmap_value(TapeLock& lock, Value* value);
/// Releases the map's reference, which stands for the storage being alive, if there is one.
void disown(TapeLock& lock, Value* value);
/// Tags the memory of a value, if it is of our stack: when it is freed, `collect_gone` unmaps the value, rather than
/// the next sweep.
void tag(Value* value, c10::StorageImpl* storage);
/// Ends `tag`, before the memory is moved out of the storage. @return false if the memory's death was reported already.
bool untag(Value* value, c10::StorageImpl* storage);
/// Notes that `value`'s order among the evictable ones has changed.
inline void touch(TapeLock& lock, Value* value) {
  auto& tape = lock.tape();
  if (!tape.candidates || value->touched || !value->region || !value->region->cap) return;
  value->touched = true;
  value->touched_index = static_cast<uint32_t>(tape.touched.size());
  tape.touched.push_back(value);
}
/// Releases values kept by name in `region`.
void release_marked(TapeLock& lock, Region* region);
/// Unmaps all values whose storage died.
void sweep_map(TapeLock& lock);
/// Returns the bytes of `value` if they are resident and unchanged, else null.
c10::Storage resident(const Value& value);
/// Removes the raw-pointer barrier, if `arm` has set it.
void disarm(Value* value, c10::StorageImpl* storage);
void disarm_alive(Value* value);
/// Passes a value to `collect_gone`. Called when the memory of an evicted or tagged value dies, possibly under the
/// tape's lock.
/// @param value  a `Value`
void memory_died(void* value);
/// Releases values whose memory died, and ends their evictions.
void collect_gone(TapeLock& lock);
bool has_gone();
/// Gives `value` new bytes, which a replay made.
void install_bytes(TapeLock& lock, Value* value, const c10::Storage& bytes);

}  // namespace refrain::tape
