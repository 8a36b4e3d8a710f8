#pragma once

#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>

#include "intercept/key.h"
#include "intercept/op_traits.h"
#include "tape/below.h"

/// Handles every operator that runs below autograd while a region is open (*record*) or slots are pending (*watch*).
namespace refrain::tape {

/// Records or watches an operator on this thread, and runs it.
/// @param stack  its arguments, afterwards its results; others may lie beneath.
void look_at(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, Below below);

/// Runs as the tape's kernel for all operators.
void look_at_boxed(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

/// Whether this thread's state needs operators with `view_only` too, or switches the tape off.
bool looks_at_views();
/// Whether operators of this thread may pass unseen: a cap rests, and nothing else looks at them. Cost: a load where no
/// cap rests.
bool sees_nothing();

}  // namespace refrain::tape
