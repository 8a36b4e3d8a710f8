#pragma once

#include <fmt/format.h>

#include <functional>

#include "refrain/memory_cap.h"
#include "tests/budget/torture.h"
#include "tests/tape/support.h"

namespace refrain_test {

inline constexpr refrain::Bytes kNoLimit = refrain::Bytes{1} << 40;

/// These tests look at what is recorded and evicted, from the first step to the last.
inline const bool kAlwaysRecords = [] {
  refrain::tape::set_rest_rule({.steps = refrain::tape::RestRule::kNever});
  return true;
}();

/// `bytes_of`, which reads through a pointer.
inline std::string bits_of(const Tensor& tensor) {
  const refrain::PinScope pin(tensor);
  return bytes_of(tensor);
}

inline void evict_all() { refrain::budget::RoomMaker::get().evict_all(); }

/// Of all that is evicted now.
inline refrain::Bytes evicted_bytes() {
  refrain::tape::TapeLock lock;
  return refrain::tape::absent_bytes(lock);
}

inline refrain::MemoryCapOptions every_byte() { return refrain::MemoryCapOptions().min_bytes(1); }

}  // namespace refrain_test
