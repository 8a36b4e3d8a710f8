#pragma once

#include <string>

namespace refrain::tape {

/// To be called before the tape's key is included for something new.
///
/// The first call registers a fallback on the key. Where somebody was first, it takes the key operator by operator instead, with slower kernels, and hands on
/// what is not for the tape; operators that were defined since, too.
/// Cost: some ms the first time, then two loads. @throws Error if the tape has no place on its key, or somebody else includes it on this thread: who, and what to do.
void require_key();

/// The first operator, by name, whose kernel on the key is somebody else's, so that the tape does not see it; "" if there is none. Cost: some ms.
std::string operator_out_of_sight();

}  // namespace refrain::tape
