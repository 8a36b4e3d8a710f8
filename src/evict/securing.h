#pragma once

#include "tape/tape.h"

/// What evicted values are computed from. Each operator behind one is *secured*: it counts who needs it, and the *sources* that those read (leaves, and
/// values of regions) are held.
namespace refrain::tape {

bool is_earlier(const Op* a, const Op* b);
bool is_source(const Value& value);
bool is_resident(const Value& value);
/// As `is_resident` after `collect_gone`, without a look at the storage.
bool seems_resident(const Value& value);

/// A value that nothing has to be computed for becomes one that others are computed from.
void make_source(TapeLock& lock, Value* value);
/// Operators that cannot be replayed, as something behind them is gone or has been overwritten: what they left in memory becomes a source.
/// @param ops  in recorded order; operators behind them that are not among them can be replayed.
void forget_lost(TapeLock& lock, c10::ArrayRef<Op*> ops);

/// Makes sure that `op` can be replayed until `release_op`: counts on what is behind it, holds sources. @return whether it can
bool secure(TapeLock& lock, Op* op);
void release_op(TapeLock& lock, Op* op);

}  // namespace refrain::tape
