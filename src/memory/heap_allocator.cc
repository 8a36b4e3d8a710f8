#include "memory/heap_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <limits>
#include <new>

#include "memory/block.h"
#include "memory/tensor_heap.h"

namespace refrain {

void* HeapAllocator::allocate(size_t bytes) {
  // a size computed from a negative number must not wrap round to a small block
  constexpr size_t kMost = static_cast<size_t>(std::numeric_limits<int64_t>::max()) - sizeof(Block);
  TORCH_CHECK_WITH(OutOfMemoryError, bytes <= kMost, "[refrain::memory] requested ", bytes,
                   " bytes, more than an address space holds; ",
                   "a tensor size is probably negative or has overflowed");
  const size_t whole = bytes + sizeof(Block);
  if (heap_ && bytes >= TensorHeap::kLeastBytes) {
    void* memory = heap_->allocate(whole);
    TORCH_CHECK_WITH(OutOfMemoryError, memory, "[refrain::memory] out of memory: the system refused ", whole,
                     " bytes; free tensors");
    auto* block = new (memory) Block{};
    block->bytes = bytes;
    block->base_context = memory;
    return block->data();
  }
  c10::DataPtr base = base_.allocate(whole);
  auto* block = new (base.get()) Block{};
  block->bytes = bytes;
  block->base_deleter = base.get_deleter();
  block->base_context = base.release_context();
  return block->data();
}

void HeapAllocator::deallocate(void* data, size_t bytes) noexcept {
  const Block& block = Block::of(data);
  if (heap_ && bytes >= TensorHeap::kLeastBytes) return heap_->release(block.base_context, bytes + sizeof(Block));
  block.base_deleter(block.base_context);
}

}  // namespace refrain
