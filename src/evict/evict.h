#pragma once

#include <cstdint>

#include "tape/tape.h"

/// Eviction: under a `MemoryCap` every operator is recorded, in one region that is no call, and values are evicted in
/// place.
///
/// An *evicted* value's storage lives without bytes; tensors, views and what autograd saved stay as they are. Before
/// the next operator reads it, it is recomputed. Meanwhile its ancestors are *secured*: each operator behind it counts
/// who needs it, and the *sources* that those read (leaves, and values of regions) are held. Nothing else is held:
/// other values live exactly as long as without a cap, so LibTorch's engine decides between steal, in-place and copy as
/// always.
namespace refrain::tape {

/// Whether `value` may be evicted, as far as its own fields tell.
bool is_evictable(const Value& value);
/// Evicts a value; its bytes are freed when `lock` is released.
/// @return whether it could be evicted. If not, it never can, or not before it is touched.
bool evict(TapeLock& lock, Value* value);
/// Least time so far of the operators that recompute `value`; beyond the first 256, an estimate. Cost: bounded.
int64_t recompute_ns(TapeLock& lock, const Value& value);
/// Number of operators until the next use of `value`, or `StepHistory::kNever` or `kUnknown`. Cost: logarithmic.
uint64_t next_use_distance(TapeLock& lock, const Value& value);

struct Now {
  uint64_t seq;       ///< as `Value::last_use`
  uint64_t position;  ///< operators of this step
  uint64_t step;
  uint64_t changes;  ///< evictions and their ends since the first cap was opened
  uint64_t evicted;  ///< values that are evicted now
};
Now now(TapeLock& lock);

/// Gives the storage of an evicted value its bytes. `bytes` must have no other owner; it names the storage afterwards.
/// @return false if the storage is gone.
bool put_back(TapeLock& lock, Value* value, c10::Storage& bytes);
/// Ends the eviction of a value whose storage died.
void end_eviction(TapeLock& lock, Value* value);
/// Ends a step: forgets operators that cannot be replayed, and how small values were computed. Cost: linear in what is
/// recorded.
void end_step();
/// Makes all resident values sources, which cannot be evicted, and releases the operators behind them: generator states
/// take memory too. A last resort.
void forget_history(TapeLock& lock);
/// Notes a value that an operator made under the cap.
void note_made(TapeLock& lock, Value* value);
/// Marks the gradient of `parameter`.
void note_gradient(const at::Tensor& parameter);

}  // namespace refrain::tape
