#pragma once

#include "tape/tape.h"

/// Keeps the ancestors of evicted values. Each operator behind one is *secured*: it counts who needs it, and the
/// *sources* that these operators read (leaves, and values of regions) are held.
namespace refrain::tape {

bool is_earlier(const Op* a, const Op* b);
bool is_source(const Value& value);
bool is_resident(const Value& value);
/// Whether `value` is resident, after `collect_gone`, without reading its storage.
bool seems_resident(const Value& value);

/// Turns a resident value into a source: the tape forgets the operator that made it.
void turn_into_source(TapeLock& lock, Value* value);
/// Marks the operators that cannot be replayed, because an ancestor is gone or overwritten; their resident results
/// become sources.
/// @param ops  in recorded order; operators behind them that are not among them can be replayed.
void mark_lost(TapeLock& lock, c10::ArrayRef<Op*> ops);

/// Makes sure that `op` can be replayed until `release_op`: counts on the operators behind it, holds sources.
/// @return whether it can
bool secure(TapeLock& lock, Op* op);
void release_op(TapeLock& lock, Op* op);
/// Makes all values sources but those that are evicted, and forgets which could be. As if the cap began now.
void forget_recorded(TapeLock& lock);

}  // namespace refrain::tape
