#include "memory/resident_allocator.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/fork.h"
#include "memory/process_memory.h"
#include "refrain/memory_cap.h"

namespace refrain {

void ResidentAllocator::lock_at_forks() { lock_at_fork(mutex_); }

void ResidentAllocator::set_limit(Bytes limit) {
  const std::lock_guard lock(mutex_);
  if (limit_.exchange(limit) == kNoLimit) {
    other_ = {};
    in_stretch_ = 0;
    reserve_ = kLeastReserve;
    foreseen_ = 0;
    high_before_ = resident_high();
  }
}

void* ResidentAllocator::allocate(size_t bytes) {
  while (true) {
    void* data = below_.allocate(bytes);
    if (limit_.load(std::memory_order_relaxed) == kNoLimit || bytes < TensorHeap::kLeastBytes) return data;
    Bytes missing = over();
    // more than once: free pages that nobody touched were held for nothing, and what is beside the heap was taken for less
    for (; missing > 0 && heap_->free() > 0; missing = over()) heap_->hold_at_most(heap_->held() - missing);
    if (missing <= 0) return data;
    below_.deallocate(data, bytes);
    make_room(missing, bytes);
  }
}

Bytes ResidentAllocator::over() {
  constexpr int kStretch = 512;
  const std::lock_guard lock(mutex_);
  const Bytes held = heap_->held();
  if (++in_stretch_ > kStretch) {
    in_stretch_ = 0;
    other_[1] = std::exchange(other_[0], 0);
  }
  other_[0] = std::max(other_[0], resident_now() - held);
  // What was seen above the forecast came and went between two allocations: scratch of kernels, small tensors.
  const Bytes high = resident_high();
  if (high > high_before_ && foreseen_ > 0) reserve_ = std::max(reserve_, (high - foreseen_) / 4 * 5);
  const Bytes all = held + std::max(other_[0], other_[1]);
  foreseen_ = std::max(foreseen_, all);
  const Bytes limit = limit_.load();
  return limit == kNoLimit ? 0 : all - (limit - reserve_);
}

Bytes ResidentAllocator::room_for_tensors() {
  const Bytes excess = over();  // of all that is held or taken beside it
  const Bytes room = heap_->held() - excess;
  return std::max<Bytes>(room - room / 16, 0);
}

void ResidentAllocator::make_room(Bytes missing, size_t requested) {
  const Bytes limit = limit_.load();
  if (auto* relief = relief_.load()) {
    const Bytes in_use = counts_->in_use();  // the request is in it
    try {
      return relief->make_room(missing, 0, in_use - missing);
    } catch (const OutOfMemory& error) {
      if (error.reason() == OutOfMemoryReason::kMaxOverhead) throw;
    }
  }
  const Bytes resident = resident_now();
  throw OutOfMemory(
      fmt::format("[refrain::memory] out of memory: requested {} bytes ({}), resident {} bytes ({}), of which the "
                  "tensors' heap holds {}, limit of the process {} bytes ({}) with {} of it for scratch: {} bytes ({}) "
                  "are missing; raise the limit, lower the batch, or checkpoint more",
                  requested, format_bytes(static_cast<Bytes>(requested)), resident, format_bytes(resident),
                  format_bytes(heap_->held()), limit, format_bytes(limit), format_bytes(reserve()), missing,
                  format_bytes(missing)),
      OutOfMemoryReason::kProcessLimit,
      {.requested = static_cast<Bytes>(requested), .in_use = resident, .limit = limit, .min_limit = limit + missing});
}

Bytes ResidentAllocator::reserve() {
  const std::lock_guard lock(mutex_);
  return reserve_;
}

}  // namespace refrain
