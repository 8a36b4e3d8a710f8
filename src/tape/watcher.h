#pragma once

#include <ATen/core/stack.h>

#include "intercept/op_traits.h"
#include "tape/arguments.h"
#include "tape/below.h"
#include "tape/thread_state.h"

/// Operators that are not recorded.
namespace refrain::tape {

/// Outside regions, or with effects: what it writes becomes unknown to the tape.
void run_unrecorded(Below below, const Arguments& arguments);
/// One that may draw, in the function of a rerun region.
void run_drawing(const OpTraits& traits, const torch::jit::Stack& stack, Below below, const ThreadState& thread);
/// Where nothing is recorded on this thread.
void watch(const OpTraits& traits, torch::jit::Stack* stack, Below below);

}  // namespace refrain::tape
