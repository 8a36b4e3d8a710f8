#pragma once

#include <ATen/core/stack.h>

#include "tape/value.h"

namespace refrain::tape {

/// Asks the policy of the operator's region, which must have one. Runs user code: without the lock.
/// @param stack holds the results of `op`, which has just run.
bool wants_saved(const Op& op, const torch::jit::Stack& stack);

}  // namespace refrain::tape
