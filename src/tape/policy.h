#pragma once

#include <ATen/core/stack.h>

#include "refrain/selective.h"
#include "tape/value.h"

namespace refrain::tape {

/// Asks the policy of the operator's region, which must have one. Runs user code: without the lock.
/// @param stack holds the results of `op`, which has just run.
CheckpointPolicy judge(const Op& op, const torch::jit::Stack& stack);
/// `kMustSave` and `kPreferSave`.
bool saves(CheckpointPolicy answer);

}  // namespace refrain::tape
