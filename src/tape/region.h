#pragma once

#include "refrain/checkpoint.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Whether `checkpoint` is a plain call on this thread now: gradients disabled, or switched off.
bool plain_call();
/// @throws InvalidArgument in modes that keep no graph to checkpoint.
void refuse_unsupported_modes();
/// Lets operators pass by the tape again if nothing on this thread needs it to look at them.
void leave_dispatch();
/// Whether a region opened on this thread now is none of its own: the step is traced or runs by a plan, which chooses what to recompute.
bool plan_chooses(const CheckpointOptions& options);
Region* open_region(const CheckpointOptions& options);
void close_region(Region* region);
/// As `refrain::set_checkpointing_enabled`.
bool set_regions_enabled(bool value);

}  // namespace refrain::tape
