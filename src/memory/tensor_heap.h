#pragma once

#include <atomic>
#include <cstddef>

#include "base/ordered_mutex.h"
#include "memory/page_runs.h"
#include "refrain/bytes.h"

namespace refrain {

/// Serves large tensors from pages of its own, beside the program's `malloc`, so that freed memory serves the next
/// tensor, and returns only as many bytes to the system as it must. It holds pages for the peak of bytes in use, and a
/// little more; pages beyond that go back to the system, the longest unused first, at the cost of page faults.
///
/// Why none of the known allocators: docs/design/memory.md. Threads: any; one mutex. Fork: a child has the pages as they were.
class TensorHeap {
 public:
  static constexpr size_t kLeastBytes = 32 << 10;  ///< smaller tensors gain nothing from pages of their own

  /// Bytes held at most if `highest` were allocated at once. With less, pages go back and forth: see
  /// docs/design/memory.md.
  /// @param is_busy  whether they did go back and forth.
  static constexpr Bytes most_held(Bytes highest, bool is_busy) {
    return is_busy ? highest + highest / 16 + (4 << 20) : highest + highest / 32 + (2 << 20);
  }

  /// Rounds a request of `bytes` up to its pages; one that is too small for the heap is unchanged.
  static Bytes rounded(Bytes bytes);

  /// Returns the heap of the process, never destroyed. Null where REFRAIN_TENSOR_HEAP=malloc, under AddressSanitizer,
  /// and where the system does not take pages back.
  static TensorHeap* get();

  /// @param bytes  `kLeastBytes` or more.
  /// @return  so many at the beginning of a page, with any content; null where the system has no more.
  void* allocate(size_t bytes);
  /// @param data, bytes  result and argument of `allocate`.
  void release(void* data, size_t bytes) noexcept;

  /// Bytes of pages, allocated or free, that were not returned to the system.
  Bytes held() const { return held_.load(std::memory_order_relaxed); }
  /// Bytes of the free ones among them.
  Bytes free() const { return free_.load(std::memory_order_relaxed); }

  /// Returns free pages to the system until at most `most` bytes are held, or none is free. Cost: page faults when they
  /// are reused.
  void hold_at_most(Bytes most);

  /// Forgets a peak above `limit`, and that pages went back and forth: from the next allocation on no more is held than
  /// for that.
  void set_limit(Bytes limit);

 private:
  /// Bytes allocated, and given back to the system for that; and how often.
  struct Traffic {
    Bytes allocated = 0, returned = 0;
    int64_t allocations = 0, returns = 0;
  };

  TensorHeap();
  bool grow(size_t bytes);
  /// @return  how many bytes.
  Bytes give_back(Bytes most);
  void judge(Bytes allocated, Bytes returned);
  void note();

  OrderedMutex mutex_{LockOrder::kHeap};  // guards what follows
  PageRuns unused_;                       ///< mapped and not allocated
  PageRuns free_runs_;                    ///< of them, those with pages
  Bytes given_ = 0;
  Bytes highest_ = 0;  ///< peak of `given_`
  Traffic lately_;
  bool is_busy_ = false;                  ///< pages go back and forth
  std::atomic<Bytes> held_{0}, free_{0};  ///< written under the mutex
};

}  // namespace refrain
