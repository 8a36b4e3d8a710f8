#pragma once

#include <cstdint>

#include "refrain/bytes.h"

namespace refrain {

/// Exact byte counts of LibTorch's CPU allocator: what was requested, not what malloc rounded it to, and never RSS.
/// Tensors allocated before `install_memory_tracking` are not counted, nor what kernels take past the allocator (oneDNN
/// scratch). All zero while tracking is not installed.
struct MemoryStats {
  Bytes current = 0;        ///< bytes allocated and not freed
  Bytes peak = 0;           ///< largest `current` since the start or `reset_peak_memory`
  int64_t allocations = 0;  ///< number of allocations so far (monotone); empty tensors need none
};

/// Wraps LibTorch's CPU allocator with tracking and limiting, once per process. Without it nothing is slowed.
/// `MemoryScope` and `MemoryLimit` call it. Threads: any. Idempotent. Cannot be undone; tensors from before stay valid.
void install_memory_tracking();
bool memory_tracking_installed() noexcept;

MemoryStats memory_stats();
void reset_peak_memory();

/// Measures a stretch of code, all threads together: bytes over the level at its construction. Scopes nest; an inner
/// scope does not disturb the peak of an outer one.
class MemoryScope {
 public:
  MemoryScope();
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

  Bytes current() const;  ///< bytes now over the starting level; negative if more was freed than allocated
  Bytes peak() const;     ///< highest level so far over the starting level; >= 0
  int64_t allocations() const;

 private:
  struct State;
  State* state_;
};

/// While alive, an allocation that would take the current bytes above `limit` throws `c10::OutOfMemoryError` naming the
/// requested bytes, the bytes in use and the limit, and allocates nothing. Process-wide; nested limits: the smallest holds.
class MemoryLimit {
 public:
  /// @param limit bytes >= 0, on the absolute `memory_stats().current`. @throws InvalidArgument if negative.
  explicit MemoryLimit(Bytes limit);
  ~MemoryLimit();
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

 private:
  int64_t id_;
};

}  // namespace refrain
