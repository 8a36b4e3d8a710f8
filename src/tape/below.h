#pragma once

#include <c10/util/FunctionRef.h>

namespace refrain::tape {

/// Runs the operator, with the tape's key excluded: takes the arguments off the stack and leaves the results there.
using Below = c10::function_ref<void()>;

}  // namespace refrain::tape
