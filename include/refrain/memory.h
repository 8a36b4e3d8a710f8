#pragma once

#include <cstdint>
#include <string>

#include "refrain/budget.h"
#include "refrain/bytes.h"

namespace refrain {

/// Exact byte counts of LibTorch's CPU allocator: what was requested, not what a heap rounded it to; and what the system counts.
/// Tensors allocated before `install_memory_tracking` are not in the allocator's bytes, nor what kernels take past it (oneDNN
/// scratch). All zero while tracking is not installed.
struct MemoryStats {
  Bytes current = 0;        ///< bytes allocated and not freed
  Bytes peak = 0;           ///< largest `current` since the start or `reset_peak_memory`
  int64_t allocations = 0;  ///< number of allocations so far (monotone); empty tensors need none
  Bytes resident = 0;       ///< of the process, everything included (VmRSS); 0 where the system does not say
  Bytes resident_peak = 0;  ///< largest `resident` since the process began or `reset_peak_memory` (VmHWM)
  Bytes resident_before = 0;  ///< `resident` when tracking was installed: libraries, and tensors from before
  Bytes heap_held = 0;      ///< pages of the tensor heap, given out or free, that the system has not got back; 0 without one
  Bytes heap_free = 0;      ///< of them, those that the next tensors can have
};

/// Wraps LibTorch's CPU allocator with tracking and limiting, once per process. Without it nothing is slowed.
/// `MemoryScope` and `MemoryLimit` call it. Threads: any. Idempotent. Cannot be undone; tensors from before stay valid.
///
/// Tensors of 32 KiB and more then come from a heap of the library's own, beside the program's `malloc`. Its pages stay within
/// 33/32 of what was given out at once at the highest, and 2 MiB: free ones go back to the system before they would exceed that.
/// A limit begins anew.
/// REFRAIN_TENSOR_HEAP=malloc in the environment switches the heap off, as AddressSanitizer does.
void install_memory_tracking();
bool memory_tracking_installed() noexcept;

/// What serves large tensors: "refrain", or "malloc" where the heap is off. Installs memory tracking.
std::string tensor_heap();

/// Cost: 20 us, for the system's counts.
MemoryStats memory_stats();
/// Of the resident bytes too, where the system lets it (Linux: /proc/self/clear_refs).
void reset_peak_memory();
/// Gives the system back what the tensor heap and `malloc` keep for later. Limits do so where they must; this is for programs that
/// go on to something else. Cost: a page fault (0.5 us) for each 4 KiB that is used again.
void release_free_memory();

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
/// requested bytes, the bytes in use and the limit, and allocates nothing. Process-wide; nested limits: the smallest of a kind holds.
///
/// A limit of the process's resident bytes is kept by giving free pages back, and then like the other. Below it stays room for what
/// no allocation of tensors announces, such as scratch of kernels: 16 MiB, and more where more was seen.
class MemoryLimit {
 public:
  /// @param limit bytes >= 0, on the absolute `memory_stats().current`. @throws InvalidArgument if negative.
  explicit MemoryLimit(Bytes limit) : MemoryLimit(Budget::tensors(limit)) {}
  /// @throws c10::OutOfMemoryError if the process has more resident already than `Budget::process` allows, Error where the heap for
  ///   tensors is off: what `malloc` keeps cannot be bounded.
  explicit MemoryLimit(Budget budget);
  ~MemoryLimit();
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

 private:
  Budget::Kind kind_;
  int64_t id_;
};

}  // namespace refrain
