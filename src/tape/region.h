#pragma once

#include "refrain/checkpoint.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Whether `checkpoint` is a pass-through on this thread now: gradients disabled, or switched off.
bool plain_call();
/// Checks the modes of this thread. @throws InvalidArgument in those that keep no graph to checkpoint.
void refuse_unsupported_modes();
/// Takes operators off the tape if nothing on this thread needs it to see them.
void leave_dispatch();
/// Whether a region opened on this thread now records nothing itself: the step is traced or runs by a plan, which
/// chooses what to recompute.
bool plan_chooses(const CheckpointOptions& options);
Region* open_region(const CheckpointOptions& options);
void close_region(Region* region);
/// Implements `refrain::set_checkpointing_enabled`.
bool set_regions_enabled(bool value);

}  // namespace refrain::tape
