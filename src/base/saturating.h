#pragma once

#include <cstdint>
#include <limits>

namespace refrain {

/// Adds; on overflow the result is the largest or smallest number.
inline int64_t saturating_add(int64_t a, int64_t b) {
  int64_t sum = 0;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b > 0 ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int64_t>::min();
}

}  // namespace refrain
