#pragma once

#include "memory/sized_allocator.h"

namespace c10 {
struct Allocator;
}

namespace refrain {

class TensorHeap;

/// Bottom of the stack: allocates from a heap for tensors, or from the allocator LibTorch had before, with a `Block` in
/// front.
class HeapAllocator final : public SizedAllocator {
 public:
  /// @param base  outlives this and gives memory aligned to 64.
  /// @param heap  for `TensorHeap::kLeastBytes` and more; null: `base` serves all.
  explicit HeapAllocator(c10::Allocator& base, TensorHeap* heap = nullptr) : base_(base), heap_(heap) {}

  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override;

 private:
  c10::Allocator& base_;
  TensorHeap* heap_;
};

}  // namespace refrain
