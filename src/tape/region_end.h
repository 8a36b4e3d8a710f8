#pragma once

#include "tape/tape.h"

/// Ends a region's values once nothing in it is pending.
namespace refrain::tape {

void slot_added(TapeLock& lock, Region* region);
void slot_removed(TapeLock& lock, Region* region);
void release_bound_holds(TapeLock& lock, Region* region);
/// Ends the values under the outermost region of `region` if nothing there is pending. Call it when `region` is closed,
/// or the last slot under it is destroyed.
void close_if_done(TapeLock& lock, Region* region);

}  // namespace refrain::tape
