#pragma once

#include <cstdint>
#include <string>

#include "refrain/api.h"
#include "refrain/budget.h"
#include "refrain/bytes.h"
#include "refrain/torch_error.h"

namespace refrain {

/// Exact byte counts of LibTorch's CPU allocator, and what the system counts.
///
/// - The allocator's bytes are what was requested, not what a heap rounded it to.
/// - Tensors allocated before `install_memory_tracking` are not in the allocator's bytes, nor what kernels take past it
///   (oneDNN scratch).
/// - All are 0 while tracking is not installed.
struct MemoryStats {
  Bytes current = 0;          ///< bytes allocated and not freed
  Bytes peak = 0;             ///< largest `current` since the start or `reset_peak_memory`
  int64_t allocations = 0;    ///< number of allocations so far (monotone); empty tensors need none
  Bytes resident = 0;         ///< of the process, everything included (VmRSS); 0 where the system does not say
  Bytes resident_peak = 0;    ///< largest `resident` since the process began or `reset_peak_memory` (VmHWM)
  Bytes resident_before = 0;  ///< `resident` when tracking was installed: libraries, and tensors from before
  /// Pages of the tensor heap, given out or free, that the system has not got back; 0 without one.
  Bytes heap_held = 0;
  Bytes heap_free = 0;  ///< of them, those that the next tensors can have
};

/// Wraps LibTorch's CPU allocator with tracking and limiting, once per process. Idempotent.
///
/// - Without it nothing is slowed. `MemoryScope` and `MemoryLimit` call it.
/// - It cannot be undone; tensors from before stay valid.
/// - From then on tensors of 32 KiB and more are allocated in a heap of the library's own, beside the program's
///   `malloc`. Its pages stay within 33/32 of the most bytes that were given out at once, and 2 MiB, or 17/16 and 4 MiB
///   once they go back and forth: free ones go back to the system before they would exceed that. A limit begins this
///   anew.
/// - REFRAIN_TENSOR_HEAP=malloc in the environment switches the heap off, as AddressSanitizer does.
/// Threads: any.
REFRAIN_API void install_memory_tracking();

/// Tells whether `install_memory_tracking` has been called.
[[nodiscard]] REFRAIN_API bool memory_tracking_installed() noexcept;

/// Names what serves large tensors. Installs memory tracking.
/// @return "refrain", or "malloc" where the heap is off.
REFRAIN_API std::string tensor_heap();

/// Reads the byte counts now.
///
/// Cost: 20 us, for the system's counts.
[[nodiscard]] REFRAIN_API MemoryStats memory_stats();

/// Begins the peaks anew: that of the allocator's bytes, and that of the resident bytes where the system lets it
/// (Linux: /proc/self/clear_refs).
REFRAIN_API void reset_peak_memory();

/// Gives the system back what the tensor heap and `malloc` keep for later.
///
/// Limits do so where they must; this is for programs that go on to something else.
/// Cost: a page fault (0.5 us) for each 4 KiB that is used again.
REFRAIN_API void release_free_memory();

/// Keeps what `malloc` frees for later allocations instead of giving it back to the system: glibc's thresholds are raised, once and
/// for the process. For steps that are timed: what is allocated and freed in each of them costs no page faults then. Tensors of 32 KiB
/// and more do not need it where the tensor heap is on. Without glibc it does nothing.
/// Threads: any.
REFRAIN_API void keep_heap();

/// Measures a stretch of code, all threads together: bytes over the level at its construction.
///
/// Scopes nest; an inner scope does not disturb the peak of an outer one.
class REFRAIN_API MemoryScope {
 public:
  [[nodiscard]] MemoryScope();
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

  /// @return bytes now over the starting level; negative if more was freed than allocated.
  [[nodiscard]] Bytes current() const;
  /// @return highest level so far over the starting level, in bytes; >= 0.
  [[nodiscard]] Bytes peak() const;
  /// @return number of allocations since construction.
  [[nodiscard]] int64_t allocations() const;

 private:
  struct State;
  State* state_;
};

/// Refuses allocations above a limit while alive, in the whole process.
///
/// - An allocation that would exceed the limit throws `OutOfMemory` naming the requested bytes, the bytes in use and
///   the limit, and allocates nothing.
/// - Nested limits: the smallest of a kind holds.
/// - A limit of the process's resident bytes gives free pages back first, and then refuses like the other. Below it a
///   reserve is kept for what no allocation of tensors announces, such as scratch of kernels: 16 MiB, and more where
///   more was seen.
class REFRAIN_API MemoryLimit {
 public:
  /// Limits the bytes of tensors.
  /// @param limit  bytes >= 0, absolute, as `memory_stats().current`.
  /// @throws InvalidArgument  if `limit` is negative.
  explicit MemoryLimit(Bytes limit) : MemoryLimit(Budget::bytes(limit)) {}

  /// Limits what `budget` counts: the bytes of tensors, or the resident bytes of the process.
  /// @throws InvalidArgument   if `budget` is a `Budget::fraction`.
  /// @throws OutOfMemory       if the process has more resident already than `Budget::process` allows.
  /// @throws EnvironmentError  for `Budget::process` where the heap for tensors is off: what `malloc` keeps cannot be
  ///                           bounded.
  explicit MemoryLimit(Budget budget);
  ~MemoryLimit();
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

 private:
  Budget::Kind kind_;
  int64_t id_;
};

}  // namespace refrain
