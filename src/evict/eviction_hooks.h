#pragma once

namespace refrain::tape {

/// Makes `Tape::cap_hooks` those of this folder. Any number of times.
void install_cap_hooks();

}  // namespace refrain::tape
