#pragma once

namespace refrain::tape {

/// Makes autograd save slots that a replay fills, in regions from now on. May be called any number of times.
void use_replay_slots();

}  // namespace refrain::tape
