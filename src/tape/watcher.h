#pragma once

#include <ATen/core/stack.h>

#include "intercept/op_traits.h"
#include "tape/arguments.h"
#include "tape/below.h"
#include "tape/thread_state.h"

/// Handles operators that are not recorded.
namespace refrain::tape {

/// Runs an operator outside regions, or with effects: what it writes becomes unknown to the tape.
void run_unrecorded(Below below, const Arguments& arguments);
/// Runs an operator that may draw, in the function of a rerun region.
void run_drawing(const OpTraits& traits, const torch::jit::Stack& stack, Below below, const ThreadState& thread);
/// Runs an operator where nothing is recorded on this thread.
void watch(const OpTraits& traits, torch::jit::Stack* stack, Below below);

}  // namespace refrain::tape
