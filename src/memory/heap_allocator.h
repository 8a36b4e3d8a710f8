#pragma once

#include "memory/sized_allocator.h"

namespace c10 {
struct Allocator;
}

namespace refrain {

/// Bottom of the stack: takes memory from the allocator LibTorch had before, with a `Block` in front.
class HeapAllocator final : public SizedAllocator {
 public:
  /// @param base  outlives this and gives memory aligned to 64.
  explicit HeapAllocator(c10::Allocator& base) : base_(base) {}

  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override;

 private:
  c10::Allocator& base_;
};

}  // namespace refrain
