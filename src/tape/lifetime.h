#pragma once

#include <vector>

#include "tape/tape.h"

/// What becomes of values when bytes are read, written and kept.
namespace refrain::tape {

/// A write whose version bump, if any, comes only after the operator returned to autograd.
struct Unsettled {
  Value* before = nullptr;  ///< owned
  Value* after = nullptr;   ///< owned
  bool holds = false;       ///< counts in `after->holds`
};

/// Unknown bytes are being read: they come from outside from now on.
void make_leaf(TapeLock& lock, Value* value);
/// The storage of `value` now means something else. @param copy bytes saved beforehand for a leaf that ops still need.
/// @param unsettled  of this thread: what waits for a version bump is added.
void overwritten(TapeLock& lock, Value* before, c10::Storage&& copy, Value* after, std::vector<Unsettled>& unsettled);
/// From now on nothing outside its region holds `value`; whoever needs it refills that region.
void let_discard(Value* value);
/// Keeps `value`, whatever refers to it already, until `region` is done.
void keep_marked(TapeLock& lock, Value* value, Region* region);
/// Whether `region` must keep the bytes of `value` alive itself; otherwise notes it as a bound where that is needed.
bool needs_hold(TapeLock& lock, Value* value, Region* region);

/// Whether the bytes of a leaf must be copied before they are overwritten, as policy and bound allow.
/// @param own_refs  operators that read it and do not need it again.
bool should_copy(TapeLock& lock, const Value& value, int32_t own_refs);

}  // namespace refrain::tape
