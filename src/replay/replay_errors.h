#pragma once

#include "tape/value.h"

/// Errors for an operator that cannot be replayed. All throw `CheckpointError`.
namespace refrain::tape {

/// Prefix of an error's message: a budget has a cap too. @param region  of the operator, or null
const char* recorded_by(const Region* region);

/// Throws: argument `ref` of `op` has another version than when it was recorded.
[[noreturn]] void throw_changed(const Op& op, const ArgRef& ref);
/// Throws: its bytes were changed without a new version.
[[noreturn]] void throw_refilled(const Op& op, const ArgRef& ref);
/// Throws: its bytes are nowhere any more. @param op  that reads it, or null
/// The storage of a tensor from outside was resized, and is too small. @param nbytes  that it has.
[[noreturn]] void throw_freed(const Op& op, const ArgRef& ref, size_t nbytes);
[[noreturn]] void throw_lost(const Value& value, const Op* op);

}  // namespace refrain::tape
