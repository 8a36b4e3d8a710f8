#pragma once

#include <c10/util/UniqueVoidPtr.h>

#include <atomic>
#include <cstddef>

namespace refrain {

class SizedAllocator;

/// Header in front of every tracked piece of memory. LibTorch passes a deleter the data pointer only (`raw_allocate`
/// demands that the context be the pointer), so the size has to be found from there.
///
/// 64 bytes, so that the data keep the 64-byte alignment LibTorch's kernels are promised.
struct Block {
  size_t bytes;                       ///< as requested; this header not counted
  SizedAllocator* top;                ///< the stack that allocated it and frees it
  void* base_context;                 ///< of the underlying allocation, for `base_deleter`
  c10::DeleterFnPtr base_deleter;     ///< null for memory of the tensor heap
  std::atomic<void*> owner{nullptr};  ///< passed once to `owner_died` when the memory is freed; null for none
  std::byte unused[24];

  /// Called with the owner, before the memory is freed, on the thread that frees it, which may hold any lock. Must not
  /// throw.
  static inline std::atomic<void (*)(void* owner)> owner_died{nullptr};

  /// Finds the header. @param data  allocated by a `HeapAllocator`; anything else is undefined behaviour.
  static Block& of(void* data) { return static_cast<Block*>(data)[-1]; }
  void* data() { return this + 1; }
};
static_assert(sizeof(Block) == 64);

}  // namespace refrain
