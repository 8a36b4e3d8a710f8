#pragma once

#include <c10/util/UniqueVoidPtr.h>

#include <atomic>
#include <cstddef>

namespace refrain {

class SizedAllocator;

/// What stands in front of every tracked piece of memory. LibTorch hands a deleter the data pointer only (`raw_allocate`
/// demands that the context be the pointer), so the size has to be found from there.
///
/// 64 bytes, so that the data keep the 64-byte alignment LibTorch's kernels are promised.
struct Block {
  size_t bytes;                       ///< as requested; this header not counted
  SizedAllocator* top;                ///< the stack that gave it out and takes it back
  void* base_context;                 ///< of the underlying allocation, for `base_deleter`
  c10::DeleterFnPtr base_deleter;     ///< null for what the tensor heap serves
  std::atomic<void*> owner{nullptr};  ///< who is told once, by `owner_died`, when the memory is given back; null for nobody
  std::byte unused[24];

  /// Called with the owner, before the memory goes, on the thread that gives it back, which may hold any lock. Must not throw.
  static inline std::atomic<void (*)(void* owner)> owner_died{nullptr};

  /// @param data  what a `HeapAllocator` gave out; anything else is undefined behaviour.
  static Block& of(void* data) { return static_cast<Block*>(data)[-1]; }
  void* data() { return this + 1; }
};
static_assert(sizeof(Block) == 64);

}  // namespace refrain
