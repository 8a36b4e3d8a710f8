#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>

#include "memory/page_runs.h"
#include "refrain/bytes.h"

namespace refrain {

/// Serves large tensors from pages of its own, beside the program's `malloc`, so that what is freed is there for the next tensor and goes back to
/// the system as many bytes as must. Of freed pages it keeps what the tensors alive at once were at the most, and a little: what no longer fits
/// into pieces of that goes back, the longest unused first, at the cost of page faults.
///
/// Why none of the known allocators: docs/design/memory.md. Threads: any; one mutex. Fork: a child has the pages as they were.
class TensorHeap {
 public:
  static constexpr size_t kLeastBytes = 32 << 10;  ///< what is smaller gains nothing from pages of its own

  /// Bytes held at most if `highest` were given out at once. With less, pages go back and forth: see docs/design/memory.md.
  static constexpr Bytes most_held(Bytes highest) { return highest + highest / 32 + (2 << 20); }

  /// Bytes of the pages that a request of `bytes` takes; those that are too small for it are as they are.
  static Bytes rounded(Bytes bytes);

  /// The process's, never destroyed. Null where REFRAIN_TENSOR_HEAP=malloc, under AddressSanitizer, and where pages are not the system's to take back.
  static TensorHeap* get();

  /// @param bytes  `kLeastBytes` or more.
  /// @return  so many at the beginning of a page, or null where the system has no more. What is in them is any bytes.
  void* allocate(size_t bytes);
  /// @param data, bytes  of `allocate`.
  void release(void* data, size_t bytes) noexcept;

  /// Bytes of pages, given out or free, that the system has not got back.
  Bytes held() const { return held_.load(std::memory_order_relaxed); }
  /// Of them, free.
  Bytes free() const { return free_.load(std::memory_order_relaxed); }

  /// Gives free pages back until at most `most` bytes are held, or none is free. Cost: the page faults of what is used again.
  void hold_at_most(Bytes most);

  /// Forgets a higher level of bytes given out than `limit`: from the next allocation on no more is held than for that.
  void set_limit(Bytes limit);

 private:
  TensorHeap();
  bool grow(size_t bytes);
  void give_back(Bytes most);
  void note();

  std::mutex mutex_;    // guards what follows
  PageRuns unused_;     ///< mapped and not given out
  PageRuns free_runs_;  ///< of them, those with pages
  Bytes given_ = 0;
  Bytes highest_ = 0;                     ///< `given_` at the most
  std::atomic<Bytes> held_{0}, free_{0};  ///< written under the mutex
};

}  // namespace refrain
