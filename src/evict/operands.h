#pragma once

#include "intercept/op_traits.h"
#include "tape/arguments.h"
#include "tape/cap_hooks.h"
#include "tape/tape.h"

namespace refrain::tape {

/// As `CapHooks::begin`. @return whether there is nothing to materialize
bool begin_operands(TapeLock& lock, const OpTraits& op, Arguments& arguments, Operands& operands);
/// As `CapHooks`.
void materialize_operands(Operands& operands);
void release_operands(TapeLock& lock, Operands& operands);
void materialize_dependents(Value* source);

/// Keeps `tensor`'s bytes in place, after bringing them back. @param by  1, or -1 to undo.
void pin(const at::Tensor& tensor, int by);

/// Name of the operator that runs on this thread under a cap, or "".
std::string running_operator();

}  // namespace refrain::tape
