#pragma once

#include "intercept/op_traits.h"
#include "tape/arguments.h"
#include "tape/cap_hooks.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Implements `CapHooks::begin`. @return whether there is nothing to materialize
bool begin_operands(TapeLock& lock, const OpTraits& op, Arguments& arguments, Operands& operands);
/// Implement `CapHooks::materialize`, `release` and `materialize_dependents`.
void materialize_operands(Operands& operands);
void release_operands(TapeLock& lock, Operands& operands);
void materialize_dependents(Value* source);

/// Pins `tensor`'s bytes, after recomputing them if needed. @param by  1, or -1 to undo.
void pin(const at::Tensor& tensor, int by);

/// Name of the operator that runs on this thread under a cap, or "".
std::string running_operator();

}  // namespace refrain::tape
