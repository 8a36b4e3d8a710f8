#pragma once

#include <vector>

#include "tape/tape.h"

/// Transitions of values when bytes are read, written and kept.
namespace refrain::tape {

/// A write whose version bump, if any, comes only after the operator returned to autograd.
struct Unsettled {
  Value* before = nullptr;  ///< owned
  Value* after = nullptr;   ///< owned
  bool holds = false;       ///< counts in `after->holds`
};

/// Turns an unknown value that is read into a leaf: its bytes count as from outside.
void make_leaf(TapeLock& lock, Value* value);
/// Notes that the storage of `before` was overwritten; `after` is its new value, or null. @param copy bytes saved
/// beforehand for a leaf that ops still need. @param unsettled  of this thread: writes that wait for a version bump are
/// added. Nothing if it is a leaf whose storage was resized.
void overwritten(TapeLock& lock, Value* before, c10::Storage&& copy, Value* after, std::vector<Unsettled>& unsettled);
/// Makes everything outside its region recompute `value` rather than hold it, from now on.
void let_discard(Value* value);
/// Holds `value`, whatever refers to it already, until nothing in `region` is pending.
void keep_marked(TapeLock& lock, Value* value, Region* region);
/// Whether `region` must keep the bytes of `value` alive itself; otherwise notes it as a bound where that is needed.
bool needs_hold(TapeLock& lock, Value* value, Region* region);

/// Whether the bytes of a leaf must be copied before they are overwritten, as policy and bound allow.
/// @param own_refs  references by operators that read it for the last time.
bool should_copy(TapeLock& lock, const Value& value, int32_t own_refs);

}  // namespace refrain::tape
