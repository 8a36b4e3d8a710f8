#pragma once

#include <functional>

#include "evict/quiet_steps.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Sets the rule, for tests, and forgets what steps have shown.
void set_rest_rule(const RestRule& rule);

/// Sets, for tests, a function called before each operator, replayed ones included; null for none.
void set_before_operator(std::function<void()> call);

/// Learns from the step that ended, and rests if it may.
void rest_after_step(TapeLock& lock);
/// Rests from the beginning of a cap, if steps under earlier ones of this limit and level have shown that it may.
void rest_from_start(TapeLock& lock);
/// Likewise, when a listener was set that has nothing to do.
void rest_under_listener();
/// Records again: something is about to look at operators or to evict. Without the lock. Threads: any. Cost: a load if
/// it does not rest.
void wake();
/// Wakes if the level rises above what steps have shown.
void wake_above();
/// Wakes unless there is room under the limit that holds now.
void wake_unless_roomy();

}  // namespace refrain::tape
