#pragma once

#include "tape/slots.h"

namespace refrain::tape {

/// Recomputes the bytes of `slot`: one pass over the operators that its region's unread slots need, each once, in
/// recorded order; enclosing regions first where this one reads from them. Called with the lock held; runs operators
/// without it.
/// @throws CheckpointError if something a needed operator read has changed since forward.
void refill(TapeLock& lock, Slot& slot);

}  // namespace refrain::tape
