#pragma once

#include <string>

namespace refrain::tape {

/// Registers the tape's kernels. Call it before the tape's key is included for something new.
///
/// The first call registers a fallback on the key. Where another library was first, it takes the key operator by
/// operator instead, with slower kernels, and forwards calls that are not for the tape; operators that were defined
/// since, too.
/// Cost: some ms the first time, then two loads. @throws EnvironmentError if the tape cannot use its key, or another
/// library includes it on this thread.
void require_key();

/// Names the first operator whose kernel on the key is another library's, so that the tape does not see it; "" if there
/// is none.
/// Cost: some ms.
std::string operator_out_of_sight();

}  // namespace refrain::tape
