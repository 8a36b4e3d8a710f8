#pragma once

#include <vector>

#include "tape/tape.h"

namespace refrain::tape {

/// Recomputes evicted values in place, in one pass; others among `values` stay as they are. Called without the lock;
/// the caller owns `values`. Passes in one process wait for each other.
/// @throws CheckpointError, c10::OutOfMemoryError; values recomputed by then stay resident.
void bring_back(const std::vector<Value*>& values);

/// A result of a replayed operator whose storage had died.
struct Recomputed {
  Value* value;  ///< not owned
  c10::Storage bytes;
};
/// Replays `op`, and operators behind it whose results are not resident. Its evicted results become resident in place.
/// Called without the lock; the caller owns `op` and the values of its results.
/// @param consumed  a value that only `bytes` keeps resident, if it may be overwritten, or null.
/// @return results without a storage of their own, which live as long as the caller keeps their bytes.
std::vector<Recomputed> run_again(Op& op, Value* consumed, c10::Storage&& bytes);

}  // namespace refrain::tape
