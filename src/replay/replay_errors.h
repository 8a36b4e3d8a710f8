#pragma once

#include "tape/value.h"

/// Why an operator cannot be replayed. All throw `CheckpointError`.
namespace refrain::tape {

/// In whose words an error is: a budget has a cap too. @param region  of the operator, or null
const char* recorded_by(const Region* region);

/// Argument `ref` of `op` has another version than when it was recorded.
[[noreturn]] void throw_changed(const Op& op, const ArgRef& ref);
/// Its bytes are others, without a version.
[[noreturn]] void throw_refilled(const Op& op, const ArgRef& ref);
/// Nobody has its bytes any more. @param op  that reads it, or null
[[noreturn]] void throw_lost(const Value& value, const Op* op);

}  // namespace refrain::tape
