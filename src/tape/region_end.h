#pragma once

#include "tape/tape.h"

/// What becomes of a region's values once nothing in it is pending.
namespace refrain::tape {

void slot_added(TapeLock& lock, Region* region);
void slot_removed(TapeLock& lock, Region* region);
void release_bound_holds(TapeLock& lock, Region* region);
/// To be called when `region` is closed, or the last slot under it gone: ends the values under its outermost one if nothing there is pending.
void close_if_done(TapeLock& lock, Region* region);

}  // namespace refrain::tape
