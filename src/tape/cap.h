#pragma once

#include "tape/cap_hooks.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Returns the hooks of the process. Only once there has been a cap: under one, for values it evicted, and in what it
/// installed.
inline CapHooks& cap_hooks() { return *Tape::get().cap_hooks.load(std::memory_order_relaxed); }

/// Whether a `MemoryCap` records.
inline bool is_capped() { return Tape::get().cap.load(std::memory_order_relaxed) != nullptr; }
/// Whether there is a `MemoryCap`.
inline bool is_cap_open() { return is_capped() || Tape::get().rests.load(std::memory_order_relaxed); }

}  // namespace refrain::tape
