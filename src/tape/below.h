#pragma once

#include <c10/util/FunctionRef.h>

namespace refrain::tape {

/// Runs the operator, with the tape's key excluded: pops the arguments from the stack and pushes the results.
using Below = c10::function_ref<void()>;

}  // namespace refrain::tape
