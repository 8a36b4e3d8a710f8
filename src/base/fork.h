#pragma once

#include "base/ordered_mutex.h"

namespace refrain {

/// Locks `mutex` before each fork of the process and unlocks it after, in parent and child: a child has no other thread
/// that would, and the data behind it is consistent there. Once for each `LockOrder`. @param mutex  lives until the
/// process ends.
void lock_at_fork(OrderedMutex& mutex);
/// Makes a mutex that is never destroyed.
OrderedMutex& make_mutex_for_forks(LockOrder order);

/// Calls `call` in each forked child, after the mutexes are unlocked. Calls run in the order of `ForkCall`. Not under
/// any lock.
enum class ForkCall { kLimits, kRoom, kTape, kListener, kCount };
void call_in_forked_child(ForkCall number, void (*call)());

}  // namespace refrain
