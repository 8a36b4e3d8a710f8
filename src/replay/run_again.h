#pragma once

#include <vector>

#include "tape/tape.h"

namespace refrain::tape {

/// Brings evicted values back in place, in one pass; others among `values` stay as they are. Called without the lock; the
/// caller owns `values`. Passes in one process wait for each other.
/// @throws CheckpointError, c10::OutOfMemoryError; what is back by then stays.
void bring_back(const std::vector<Value*>& values);

/// What an operator that ran again made and nobody had.
struct Remade {
  Value* value;        ///< not owned
  c10::Storage bytes;
};
/// Runs `op` once more, and what is behind it if that is not in memory. Evicted results are back in place. Called without the lock; the
/// caller owns `op` and the values of its results.
/// @param consumed  a value that only `bytes` keeps in memory, if it may be overwritten, or null.
/// @return results without a storage of their own, which live as long as the caller keeps their bytes.
std::vector<Remade> run_again(Op& op, Value* consumed, c10::Storage&& bytes);

}  // namespace refrain::tape
