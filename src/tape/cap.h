#pragma once

#include "tape/cap_hooks.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Returns the hooks of the process. Only once there has been a cap: under one, for values it evicted, and in what it
/// installed.
inline CapHooks& cap_hooks() { return *Tape::get().cap_hooks.load(std::memory_order_relaxed); }

inline bool is_capped() { return Tape::get().cap.load(std::memory_order_relaxed) != nullptr; }

}  // namespace refrain::tape
