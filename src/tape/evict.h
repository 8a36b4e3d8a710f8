#pragma once

#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <functional>
#include <vector>

#include "tape/arguments.h"
#include "tape/tape.h"

/// Evicting: under a `MemoryCap` every operator is recorded, in one region that is no call, and values leave memory in place.
///
/// An *evicted* value's storage lives without bytes; tensors, views and what autograd saved stay as they are. The next operator
/// that reads it brings them back first. While it is evicted, what it was computed from is *secured*: each operator behind
/// it counts who needs it, and the *sources* that those read (leaves, and values of regions) are held. Nothing else
/// is held: live values stay as alive as LibTorch has them, so its engine decides between steal, in-place and copy as always.
namespace refrain::tape {

/// Records everything on threads that include the tape's key, from the first to the last of nested calls. Threads: any.
void open_cap();
/// The last one brings back what is evicted. What cannot be stays so, and says it when it is read.
void close_cap();
/// Records what this thread does too. @return false if there is no cap, or it does already.
bool join_cap();
/// Ends that.
void leave_cap();

/// Whether `value` may leave memory, as far as can be told from a short look at it alone.
bool is_evictable(const Value& value);
/// Lets the bytes of an evictable value go; they are freed when `lock` is released.
/// @return whether it could be. If not, it is not evictable any more, or not before it is touched.
bool evict(TapeLock& lock, Value* value);
/// Least time so far of the operators that would run to bring `value` back; beyond the first 256, an estimate. Cost: bounded.
int64_t recompute_ns(TapeLock& lock, const Value& value);
/// Operators until `value` is used, or `StepHistory::kNever` or `kUnknown`. Cost: logarithmic.
uint64_t next_use_distance(TapeLock& lock, const Value& value);

struct Now {
  uint64_t seq;       ///< as `Value::last_use`
  uint64_t position;  ///< operators of this step
  uint64_t step;
  uint64_t changes;   ///< values that were evicted, or stopped being so, since the first cap began
  uint64_t evicted;   ///< values that are evicted
};
Now now(TapeLock& lock);

/// Gives the storage of an evicted value its bytes. Those of `bytes` must be nobody else's; it names the storage afterwards.
/// @return false if the storage is gone.
bool put_back(TapeLock& lock, Value* value, c10::Storage& bytes);
/// Ends the eviction of values whose storage died.
void collect_gone(TapeLock& lock);
bool has_gone();
/// Ends a step: forgets operators that nothing can be computed again with, and how small values were computed. Cost: linear in what is recorded.
void end_step();
/// What is in memory now will not leave any more, and the tape lets go of what made it: generator states take memory too. A last resort.
void forget_history(TapeLock& lock);
/// To be called for what an operator made under the cap.
void note_made(TapeLock& lock, Value* value);
/// Marks the gradient of `parameter`.
void note_gradient(const at::Tensor& parameter);

/// Locks the values that an operator reads or writes, as long as it runs, so that they have bytes.
class Operands {
 public:
  /// Notes in `arguments` what the tape knows.
  Operands(TapeLock& lock, const OpTraits& traits, Arguments& arguments);
  ~Operands();
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;

  /// Whether there is something to `bring_back`.
  bool are_missing() const { return !missing_.empty() || !written_.empty(); }
  /// Also what was computed from a source that the operator is about to overwrite. Without the lock.
  void bring_back();
  c10::ArrayRef<Value*> values() const { return values_; }
  /// Ends the locks, which otherwise the end of the object does.
  void release(TapeLock& lock);

 private:
  const OpTraits* const outer_;
  c10::SmallVector<Value*, 6> values_;    ///< owned, locked
  c10::SmallVector<Value*, 2> overwritten_;  ///< among `values_`
  std::vector<Value*> missing_;           ///< owned
  std::vector<Value*> written_;           ///< among `values_`: parameters that evicted values are computed from
};

/// Recomputes what is evicted and computed from `source`, which is about to be overwritten by something that is no operator. Without the
/// lock; the caller owns `source`. @throws what `bring_back` throws.
void bring_back_dependents(Value* source);

/// Keeps `tensor`'s bytes in place, after bringing them back. @param by  1, or -1 to undo.
void pin(const at::Tensor& tensor, int by);

/// Pins a tensor while it lives. Nothing without a cap.
class Pinned {
 public:
  explicit Pinned(const at::Tensor& tensor) {
    if (!Tape::get().cap.load(std::memory_order_relaxed)) return;
    pin(tensor, 1);
    tensor_ = &tensor;
  }
  ~Pinned() {
    if (tensor_) pin(*tensor_, -1);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  const at::Tensor* tensor_ = nullptr;
};

/// Since the first of the caps alive began.
struct CapCounters {
  std::atomic<int64_t> evictions{0};
  std::atomic<int64_t> evicted_bytes{0};
  std::atomic<int64_t> recomputes{0};
  std::atomic<int64_t> recompute_ns{0};
};
CapCounters& cap_counters();

/// Of this step, which begins when a backward ends.
struct StepTimes {
  int64_t operators_ns = 0;  ///< of the last whole step if that took longer
  int64_t again_ns = 0;      ///< computing again
};
/// One pass of this step that brought something back.
struct StepPass {
  int64_t demand = 0;  ///< bytes: a limit of as many, and it would not have been needed
  int64_t ns = 0;
};
StepTimes step_times(TapeLock& lock);
void add_time(TapeLock& lock, int64_t operators_ns);
/// A copy, for when time has run out.
std::vector<StepPass> step_passes(TapeLock& lock);
void add_pass(TapeLock& lock, const StepPass& pass);
/// Bytes of all that is evicted now.
int64_t absent_bytes(TapeLock& lock);
/// Values that are evicted from now on leave for want of a limit of `bytes`.
void set_demand(TapeLock& lock, int64_t bytes);
/// Called before each pass, without the lock; may throw, then there is none. Null for nothing.
void set_before_pass(void (*call)());
void before_pass();

/// Name of the operator that runs on this thread under a cap, or "".
std::string running_operator();

/// Least time that this operator took so far with arguments of these sizes, in this process.
int64_t least_ns(TapeLock& lock, const Op& op, int64_t ns);

/// For tests: called before each operator, and each that is replayed; null for none.
void set_before_operator(std::function<void()> call);
bool has_before_operator();
void before_operator();

}  // namespace refrain::tape
