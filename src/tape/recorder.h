#pragma once

#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/util/FunctionRef.h>

#include <unordered_set>

#include "tape/key.h"
#include "tape/op_traits.h"

/// Sees every operator that runs below autograd while a region is open (*record*) or slots are pending (*watch*).
namespace refrain::tape {

/// Runs the operator, with the tape's key excluded: takes the arguments off the stack and leaves the results there.
using Below = c10::function_ref<void()>;

/// What the tape does about an operator on this thread, the run of it included.
/// @param stack  its arguments, afterwards its results; others may lie beneath.
void look_at(const OpTraits& traits, c10::DispatchKeySet keys, torch::jit::Stack* stack, Below below);

/// The tape's kernel for all operators.
void look_at_boxed(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

/// Registers the kernels for the operators of `REFRAIN_TYPED_OPS` on the tape's key, but for `except`. @throws c10::Error.
void add_typed_ops(const std::unordered_set<c10::OperatorName>& except);
bool is_typed_op(const c10::OperatorName& name);

/// Whether somebody on this thread wants to hear of operators with `view_only`, or switches the tape off.
bool looks_at_views();

}  // namespace refrain::tape
