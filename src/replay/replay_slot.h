#pragma once

namespace refrain::tape {

/// What autograd saves in regions is from now on kept as slots that a replay fills. Any number of times.
void use_replay_slots();

}  // namespace refrain::tape
