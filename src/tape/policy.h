#pragma once

#include <ATen/core/stack.h>

#include "refrain/selective.h"
#include "tape/value.h"

namespace refrain::tape {

/// Calls the policy of the operator's region, which must have one. Runs user code: without the lock.
/// @param stack holds the results of `op`, which has just run.
CheckpointPolicy judge(const Op& op, const torch::jit::Stack& stack);
/// Whether the answer is `kMustSave` or `kPreferSave`.
bool saves(CheckpointPolicy answer);

}  // namespace refrain::tape
