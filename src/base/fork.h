#pragma once

#include <mutex>

namespace refrain {

/// Mutexes of the process in the order in which a thread may take one while it holds another.
enum class ForkOrder { kPass, kGenerator, kTape, kTracking, kTimeline, kWatch, kModules, kNames, kTraits, kEffects, kRoom, kLimits, kResident, kHeap, kCount };

/// Takes `mutex` before each fork of the process and gives it back after, in parent and child: a child has no other thread that would, and finds
/// what it guards whole. Once for each place in the order. @param mutex  lives until the process ends.
void lock_at_fork(ForkOrder order, std::mutex& mutex);
/// Makes one that is never destroyed.
std::mutex& make_mutex_for_forks(ForkOrder order);

/// Calls `call` in each forked child, after the mutexes are free. Calls come in the order of their numbers here. Not under any lock.
enum class ForkCall { kLimits, kRoom, kTape, kListener, kCount };
void call_in_forked_child(ForkCall number, void (*call)());

}  // namespace refrain
