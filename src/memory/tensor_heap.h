#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>

#include "refrain/bytes.h"

namespace refrain {

/// Serves large tensors from an allocator that is loaded beside the program's `malloc`, so that what is freed is there for the next
/// tensor and can be given back to the system. Of freed pages it keeps what the tensors alive at once were at the most: what no longer
/// fits into pieces of that goes back, at the cost of page faults.
///
/// tcmalloc, because loaded with local symbols it leaves `malloc` alone and takes 88 bytes of static TLS: see docs/design/memory.md.
/// Threads: any. Fork: tcmalloc's own handlers, and the mutex here.
class TensorHeap {
 public:
  static constexpr size_t kLeastBytes = 32 << 10;  ///< what is smaller gains nothing from pages of its own

  /// What tcmalloc keeps at most of freed tensors of up to 256 KiB in its lists by size, which are no free pages: two of each size.
  static constexpr Bytes kLists = 8 << 20;

  /// Bytes held at most if `highest` were given out at once, as far as free pages go. With less, pages go back and forth: see docs/design/memory.md.
  static constexpr Bytes most_held(Bytes highest) { return highest + highest / 16 + (4 << 20); }

  /// Bytes of the pages that a request of `bytes` takes.
  static constexpr Bytes rounded(Bytes bytes) {
    constexpr Bytes kPage = 8 << 10;  // tcmalloc's
    return bytes < static_cast<Bytes>(kLeastBytes) ? bytes : (bytes + kPage - 1) / kPage * kPage;
  }

  /// The process's, never destroyed. Null where none can be loaded, where REFRAIN_TENSOR_HEAP=malloc, under AddressSanitizer.
  static TensorHeap* get();

  /// @return  `bytes` aligned to 64, or null where the system has no more.
  void* allocate(size_t bytes);
  /// @param data, bytes  of `allocate`.
  void release(void* data, size_t bytes) noexcept;

  /// Bytes of pages, given out or free, that the system has not got back. Cost: 0.2 us.
  Bytes held() const;
  /// Of them, free.
  Bytes free() const;

  /// Gives free pages back until at most `most` bytes are held, or none is free. Cost: 0.2 us if nothing is to be done; else the
  /// page faults of what is used again.
  void hold_at_most(Bytes most);

  /// Forgets a higher level of bytes given out than `limit`: from the next allocation on no more is held than for that.
  void set_limit(Bytes limit);

 private:
  struct Functions;
  explicit TensorHeap(const Functions& functions);
  Bytes property(const char* name) const;

  const Functions& functions_;
  std::atomic<Bytes> given_{0};    ///< alive now, in whole pages
  std::atomic<Bytes> highest_{0};  ///< `given_` at the most
  std::mutex mutex_;   // guards what follows
  Bytes credit_ = 0;   ///< given back beyond what was asked, which tcmalloc subtracts from what is asked next
};

}  // namespace refrain
