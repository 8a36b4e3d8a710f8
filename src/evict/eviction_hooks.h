#pragma once

namespace refrain::tape {

/// Sets `Tape::cap_hooks` to those of this folder. May be called any number of times.
void install_cap_hooks();

}  // namespace refrain::tape
