#pragma once

#include <cstdint>

#include "tape/tape.h"

/// Evicting: under a `MemoryCap` every operator is recorded, in one region that is no call, and values leave memory in place.
///
/// An *evicted* value's storage lives without bytes; tensors, views and what autograd saved stay as they are. The next operator
/// that reads it brings them back first. While it is evicted, what it was computed from is *secured*: each operator behind
/// it counts who needs it, and the *sources* that those read (leaves, and values of regions) are held. Nothing else
/// is held: live values stay as alive as LibTorch has them, so its engine decides between steal, in-place and copy as always.
namespace refrain::tape {

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
/// Ends the eviction of a value whose storage died.
void end_eviction(TapeLock& lock, Value* value);
/// Ends a step: forgets operators that nothing can be computed again with, and how small values were computed. Cost: linear in what is recorded.
void end_step();
/// What is in memory now will not leave any more, and the tape lets go of what made it: generator states take memory too. A last resort.
void forget_history(TapeLock& lock);
/// To be called for what an operator made under the cap.
void note_made(TapeLock& lock, Value* value);
/// Marks the gradient of `parameter`.
void note_gradient(const at::Tensor& parameter);

}  // namespace refrain::tape
