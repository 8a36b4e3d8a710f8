#pragma once

#include "tape/slots.h"

namespace refrain::tape {

/// Brings the bytes of `slot` back: one pass over the operators that its region's unread slots need, each once, in recorded
/// order; enclosing regions first where this one reads from them. Called with the lock held; runs operators without it.
/// @throws CheckpointError if something a needed operator read has changed since forward.
void refill(TapeLock& lock, Slot& slot);

/// Brings evicted values back in place, in one pass; others among `values` stay as they are. Called without the lock; the
/// caller owns `values`. Passes in one process wait for each other.
/// @throws CheckpointError, c10::OutOfMemoryError; what is back by then stays.
void bring_back(const std::vector<Value*>& values);

}  // namespace refrain::tape
