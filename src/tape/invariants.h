#pragma once

#include <string>

namespace refrain::tape {

struct Value;

/// Checks what always holds of a value between two locks, so that a state that cannot be shows where it began.
/// @return what does not hold, or "". Needs the lock.
std::string broken_invariant(const Value& value);

}  // namespace refrain::tape
