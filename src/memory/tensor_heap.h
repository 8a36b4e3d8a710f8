#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>

#include "refrain/bytes.h"

namespace refrain {

/// Serves large tensors from an allocator that is loaded beside the program's `malloc`, so that what is freed is there for the next
/// tensor and can be given back to the system. Freed pages are kept until a limit asks for them.
///
/// tcmalloc, because loaded with local symbols it leaves `malloc` alone and takes 88 bytes of static TLS: see docs/design/memory.md.
/// Threads: any. Fork: tcmalloc's own handlers, and the mutex here.
class TensorHeap {
 public:
  static constexpr size_t kLeastBytes = 32 << 10;  ///< what is smaller gains nothing from pages of its own

  /// Bytes held at most under a limit on those given out. With less, pages go back and forth: a GPT step under a MemoryCap is no
  /// slower with these, and 8 % with a 32nd (docs/design/memory.md).
  static constexpr Bytes most_held(Bytes limit) { return limit + limit / 8 + (4 << 20); }

  /// The process's, never destroyed. Null where none can be loaded, where REFRAIN_TENSOR_HEAP=malloc, under AddressSanitizer.
  static TensorHeap* get();

  /// @return  `bytes` aligned to 64, or null where the system has no more.
  void* allocate(size_t bytes);
  /// @param data  of `allocate`. A function, so that a `Block` can name it.
  static void release(void* data) noexcept;

  /// Bytes of pages, given out or free, that the system has not got back. Cost: 0.2 us.
  Bytes held() const;
  /// Of them, free.
  Bytes free() const;

  /// Gives free pages back until at most `most` bytes are held, or none is free. Cost: 0.2 us if nothing is to be done; else the
  /// page faults of what is used again.
  void hold_at_most(Bytes most);

  /// Keeps what is held within `most_held(limit)`, as far as free pages go, from the next allocation on.
  void set_limit(Bytes limit);

 private:
  struct Functions;
  explicit TensorHeap(const Functions& functions);
  Bytes property(const char* name) const;

  const Functions& functions_;
  std::atomic<Bytes> most_;
  std::mutex mutex_;   // guards what follows
  Bytes credit_ = 0;   ///< given back beyond what was asked, which tcmalloc subtracts from what is asked next
};

}  // namespace refrain
