#include "memory/torch_allocator.h"

#include "memory/block.h"
#include "memory/refusals.h"

namespace refrain {
namespace {

void release(void* data) {
  if (!data) return;
  Block& block = Block::of(data);
  if (block.owner.load(std::memory_order_relaxed))
    if (auto* owner = block.owner.exchange(nullptr)) Block::owner_died.load()(owner);
  block.top->deallocate(data, block.bytes);
}

}  // namespace

c10::DataPtr TorchAllocator::allocate(size_t bytes) {
  const c10::Device cpu(c10::DeviceType::CPU);
  if (bytes == 0) return {nullptr, nullptr, &release, cpu};
  void* data = nullptr;
  try {
    data = top_.allocate(bytes);
  } catch (const OutOfMemory& error) {
    note_refusal(error);
    throw;
  }
  Block::of(data).top = &top_;
  return {data, data, &release, cpu};
}

c10::DeleterFnPtr TorchAllocator::raw_deleter() const { return &release; }

void TorchAllocator::copy_data(void* dest, const void* src, size_t count) const { default_copy_data(dest, src, count); }

}  // namespace refrain
