#pragma once

#include <ATen/core/stack.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "refrain/checkpoint.h"
#include "refrain/tape.h"
#include "tape/op_traits.h"
#include "tape/open_scopes.h"
#include "tape/pool.h"
#include "tape/value.h"

namespace torch::autograd {
struct SavedVariableHooks;
}

namespace refrain::tape {

/// Gives autograd something to keep instead of a tensor, while it is this thread's innermost.
class Saver {
 public:
  Saver();
  virtual std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() = 0;
  /// Whether regions inside are called again with the function, rather than replayed.
  virtual bool is_rerun() const { return false; }

  size_t hook_depth;  ///< `saved_hook_depth` when it was made: hooks put on later go first

 protected:
  ~Saver() = default;
};

class Observer;
class OffloadingSaver;
class RegionWork;

/// One `checkpoint` call: what was saved in it, and whether somebody is refilling it.
struct Region {
  /// A value this region reads from an enclosing or sibling region, or a discarded one of another; held from the refill of
  /// that region until ours.
  struct Bound {
    Value* value = nullptr;  ///< owned
    bool holds = false;
  };

  int32_t refs = 0;
  int32_t live_slots = 0;   ///< here and in nested regions
  bool active = true;       ///< its scope is open, or that of a region inside it
  bool is_open = true;      ///< its scope is open
  int32_t open_children = 0;  ///< that are active
  bool preserve_rng_state = true;
  bool cap = false;         ///< not a call: the one that everything is recorded in under a `MemoryCap`, see evict.h
  std::shared_ptr<const Policy> policy;
  std::shared_ptr<OffloadStore> offload;  ///< for what `policy` offloads
  std::shared_ptr<RegionWork> work;  ///< of `CheckpointOptions::inputs`, or null
  std::vector<Value*> inputs;        ///< owned while it is active: what `work` was asked to store
  bool selective = false;   ///< on an outermost region: it or one inside has a policy
  int64_t judged = 0;                          ///< operators that `policy` was asked about
  std::unordered_map<std::string, int64_t> counts;  ///< of `OpContext::count`; this and `judged`: recording thread only
  Region* parent = nullptr;  ///< owned
  Region* top = nullptr;     ///< outermost enclosing region or itself; not owned
  size_t hook_depth = 0;         ///< as `Saver::hook_depth`
  std::vector<Region*> children;  ///< not owned
  std::vector<Bound> bounds;
  std::vector<Value*> marked;     ///< owned and held: kept by name, after the operators that read them may have run
  Slot* slots = nullptr;
  std::vector<Value*> values;  ///< produced here and alive; not owned
  bool filling = false;      ///< some thread is replaying for it
  int32_t cleanup_task = -2; ///< graph task that will drop what it leaves unread
  std::unique_ptr<at::ThreadLocalState> thread_state;
};

class TapeLock;

/// Orders values that may be evicted. Called with the lock.
class Candidates {
 public:
  /// A queued value is about to be destroyed.
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

  std::mutex mutex;
  std::condition_variable filled;
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
  std::atomic<Region*> cap{nullptr};  ///< while there is a `MemoryCap`
  Candidates* candidates = nullptr;   ///< once something has had to leave memory; till then `touched` stays empty
  std::vector<Value*> touched;        ///< made or used since `candidates` last looked; null where one has died
  std::atomic<Value*> gone{nullptr};  ///< evicted or tagged values whose memory died, linked; each owned; not guarded
};

/// The lock on the tape's bookkeeping, and the only way to let go of things: what dies while it is held is taken apart
/// by a loop (never by recursion: chains are millions long) and freed after the lock is released, because freeing may run
/// foreign code. Never run an operator, allocate a tensor or free a storage while holding it.
class TapeLock {
 public:
  TapeLock() : tape_(Tape::get()), lock_(tape_.mutex) {}
  ~TapeLock() {
    if (let_go_ || tape_.gone.load(std::memory_order_relaxed)) finish();
  }
  TapeLock(const TapeLock&) = delete;
  TapeLock& operator=(const TapeLock&) = delete;

  Tape& tape() { return tape_; }
  std::unique_lock<std::mutex>& raw() { return lock_; }

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
  LetGo& let_go() { return let_go_ ? *let_go_ : let_go_.emplace(); }
  void finish();
  void drain();
  void destroy(Value* value);
  void take_apart(Op* op);

  Tape& tape_;
  std::unique_lock<std::mutex> lock_;
  std::optional<LetGo> let_go_;  ///< most locks let nothing go
};

/// Asks the next operator to stop a function that was called again, before it runs. Not where autograd saves the last tensor: a
/// custom function that is stopped while it saves keeps itself alive.
struct StopRequest {
  bool due = false;         ///< all that backward needs has been saved
  bool writing = false;     ///< an operator writes what was saved before it ran, and has begun: if it throws, that is not there
  int32_t graph_task = -1;  ///< of the backward that called the function again
  const void* frame = nullptr;  ///< an address in the stack frame that an exception must reach
  /// What was saved before its operator ran, as `rrelu` saves the noise that it has yet to draw: the last operator's, by its
  /// number; and what was saved as it came from `empty`.
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> arguments, raw;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> fresh;  ///< from `empty`, and not written by an operator yet
  uint64_t node = 0;        ///< of `arguments`
  std::function<void()> runs_on;  ///< or null; called if the function cannot be stopped once all is there

  /// Backward needs it. @param argument  of an operator that has not run yet.
  void saved(const at::Tensor& tensor, bool argument);
};
/// To be called with the arguments of each operator of a function that was called again. Throws through the function once all is
/// there, unless the operator may be one that writes what was saved before it ran, a backward inside the function is running (the
/// engine would not come out of it whole), or an exception would not get through: then the function runs on.
void stop_function(StopRequest& request, const OpTraits& op, const torch::jit::Stack& stack);
/// And with its results.
void note_results(StopRequest& request, const OpTraits& op, const torch::jit::Stack& stack);

/// Whether the operator that autograd records has run, and `tensor`, which it saves, is a result of it.
bool made_by_newest_node(const at::Tensor& tensor);
/// Whether LibTorch may run an operator with these arguments on the way to another one: to resolve a conjugate, a negative view
/// or a zero tensor before that.
bool may_be_helper(const OpTraits& op, const torch::jit::Stack& stack);

/// What this thread is recording and what it still has to settle.
struct ThreadState {
  /// A write whose version bump, if any, comes only after the operator returned to autograd.
  struct Unsettled {
    Value* before = nullptr;  ///< owned
    Value* after = nullptr;   ///< owned
    bool holds = false;       ///< counts in `after->holds`
  };
  Region* region = nullptr;   ///< innermost open region, owned by its scope
  Saver* saver = nullptr;     ///< goes before `region`: a rerun region's, in forward or when its function is called again
  OpTrace* trace = nullptr;   ///< notes every operator
  Observer* observer = nullptr;  ///< of the `saved_tensors` that runs
  StopRequest* stop = nullptr;   ///< of the function that was called again
  Draws* draws = nullptr;        ///< of the innermost function of a rerun region
  OffloadingSaver* offloads = nullptr;  ///< has saved arguments of an operator that may not have run yet
  const OpTraits* operands_of = nullptr;  ///< the operator that runs under a cap
  int64_t made_room_ns = 0;      ///< spent in allocations, deciding what leaves memory
  int open_reruns = 0;        ///< rerun regions in forward
  int planned_regions = 0;    ///< open ones whose operators are planned with the rest of the step
  int engine_runs = 0;        ///< `EngineRun`s alive on this thread
  bool* engine_probe = nullptr;  ///< set while somebody asks whether an engine leads to the tape
  bool recomputing = false;   ///< a replay pass runs on this thread, or a function is called again
  int disabled = 0;           ///< `NoCheckpointGuard`s
  GuardedValue<bool> early_stop, debug;
  std::vector<OpenScope> open;  ///< in order of opening; `region`, `saver`, `trace`, `draws` and `open_reruns` follow from it
  std::vector<Unsettled> unsettled;
  std::vector<Value*> unknown_slots;  ///< owned and held: packed while unknown, decided at the next operator
  std::vector<torch::jit::Stack> spare_stacks;  ///< of `typed_ops.cc`
  ThreadState() = default;
  ~ThreadState();
  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;
  static ThreadState& get() { return current ? *current : make(); }

  void opened(const OpenScope& scope);
  /// Scopes may close in another order than that of opening. @return whether it was opened on this thread.
  bool closed(const void* owner);

 private:
  void follow_open();
  static ThreadState& make();
  // One pointer in static thread-local storage: a look at it is a load, not a call.
  [[gnu::tls_model("initial-exec")]] static thread_local ThreadState* current;
};

// --- values -----------------------------------------------------------------------------------------------------------

inline Value* find_value(TapeLock& lock, c10::StorageImpl* storage) {
  return lock.tape().map.find(storage);
}
/// The value in `tensor`'s storage; a new leaf if the tape does not know it. @returns borrowed; retain before unlocking.
Value* value_of(TapeLock& lock, const at::Tensor& tensor);
inline void retain(Value* value) { ++value->refs; }
void hold(TapeLock& lock, Value* value);
void unhold(TapeLock& lock, Value* value);
void map_value(TapeLock& lock, Value* value, c10::StorageImpl* storage, bool owning);
void unmap_value(TapeLock& lock, Value* value);
/// Ends the reference that stands for the storage being alive, if there is one.
void disown(TapeLock& lock, Value* value);
/// Its memory will tell when it is freed, and `collect_gone` unmaps it then, rather than the next sweep. If that memory is of our stack.
void tag(Value* value, c10::StorageImpl* storage);
/// To be called for a value before its memory leaves its storage. @return false if the memory has told already.
bool untag(Value* value, c10::StorageImpl* storage);
/// `value`'s chances to be evicted have changed.
inline void touch(TapeLock& lock, Value* value) {
  auto& tape = lock.tape();
  if (!tape.candidates || value->touched || !value->region || !value->region->cap) return;
  value->touched = true;
  value->touched_index = static_cast<uint32_t>(tape.touched.size());
  tape.touched.push_back(value);
}
/// Unmaps all whose storage is gone.
void sweep_map(TapeLock& lock);
/// Bytes of `value` if they are in memory and unchanged, else null.
c10::Storage resident(const Value& value);
/// Unknown bytes are being read: they come from outside from now on.
void make_leaf(TapeLock& lock, Value* value);
/// The storage of `value` now means something else. @param copy bytes saved beforehand for a leaf that ops still need.
/// @returns the value that slots without a version bump move to (borrowed), or null if there are no slots.
Value* overwritten(TapeLock& lock, Value* before, c10::Storage&& copy, Value* after);
/// From now on nothing outside its region holds `value`; whoever needs it refills that region.
void let_discard(Value* value);
/// Keeps `value`, whatever refers to it already, until `region` is done.
void keep_marked(TapeLock& lock, Value* value, Region* region);
/// Whether `region` must keep the bytes of `value` alive itself; otherwise notes it as a bound where that is needed.
bool needs_hold(TapeLock& lock, Value* value, Region* region);

/// Whether the bytes of a leaf must be copied before they are overwritten, as policy and bound allow.
/// @param own_refs  operators that read it and do not need it again.
bool should_copy(TapeLock& lock, const Value& value, int32_t own_refs);

/// Arms the raw-pointer barrier on the storage of a value: whoever asks for a pointer to write through counts as a writer. Then what can be
/// replayed makes room for a leaf, and a leaf that recorded operators need is copied first.
void arm(Value* value, c10::StorageImpl* storage);
void disarm(Value* value, c10::StorageImpl* storage);
void disarm_alive(Value* value);
/// Whether any barrier (ours or copy-on-write's) is set. False where LibTorch has none.
bool has_barrier(const c10::StorageImpl* storage);

/// Decides what waited for a version bump.
void settle_writes(TapeLock& lock, ThreadState& thread);
/// Slots packed on unknown bytes that no operator has written since: from now on they mean what is there.
void settle_unknown(TapeLock& lock, ThreadState& thread);
/// Both. At every event but a pack and the start of an operator, which may be the one that fills the unknown bytes.
void settle(TapeLock& lock, ThreadState& thread);

// --- regions ----------------------------------------------------------------------------------------------------------

/// Whether `checkpoint` is a plain call on this thread now: gradients disabled, or switched off.
bool plain_call();
/// @throws InvalidArgument in modes that keep no graph to checkpoint.
void refuse_unsupported_modes();
/// Lets operators pass by the tape again if nothing on this thread needs it to look at them.
void leave_dispatch();
/// Whether a region opened on this thread now is none of its own: the step is traced or runs by a plan, which chooses what to recompute.
bool plan_chooses(const CheckpointOptions& options);
Region* open_region(const CheckpointOptions& options);
void close_region(Region* region);
void slot_added(TapeLock& lock, Region* region);
void slot_removed(TapeLock& lock, Region* region);
void release_bound_holds(TapeLock& lock, Region* region);
void release_marked(TapeLock& lock, Region* region);
/// Lets go of what policies saved under `top`, which is closing, and no pending slot can need.
void release_unneeded(TapeLock& lock, Region* top);

}  // namespace refrain::tape
