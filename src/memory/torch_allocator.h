#pragma once

#include <c10/core/Allocator.h>

#include "memory/sized_allocator.h"

namespace refrain {

/// Shows a stack of `SizedAllocator`s to LibTorch as a CPU allocator.
///
/// Context and data pointer are the same, so `raw_allocate`, `raw_deallocate` and `clone` work. Zero bytes give a null
/// pointer, as with LibTorch's own allocator, and do not enter the stack. A `HeapAllocator` must be at the bottom.
class TorchAllocator final : public c10::Allocator {
 public:
  explicit TorchAllocator(SizedAllocator& top) : top_(top) {}

  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* dest, const void* src, size_t count) const override;

 private:
  SizedAllocator& top_;
};

}  // namespace refrain
