#pragma once

#include <array>
#include <atomic>
#include <limits>

#include "base/ordered_mutex.h"
#include "memory/limiting_allocator.h"
#include "memory/sized_allocator.h"
#include "memory/tensor_heap.h"

namespace refrain {

/// Keeps the resident bytes of the process within a limit: those of the heap and all others.
///
/// Invariant after each allocation of `TensorHeap::kLeastBytes` and more, as far as free pages and `Relief` go:
///     held by the heap + other <= limit - reserve
/// `other` is what was resident beside the heap at the last allocations; `reserve` covers allocations elsewhere between
/// two of them. An allocation is made first and judged then: reused memory costs nothing, and new memory has not been
/// touched yet.
/// Cost: one atomic read without a limit, else 4 us an allocation of that size.
class ResidentAllocator final : public SizedAllocator {
 public:
  static constexpr Bytes kNoLimit = LimitingAllocator::kNoLimit;
  static constexpr Bytes kLeastReserve = 16 << 20;

  /// @param heap  null: no limit can be set.
  ResidentAllocator(SizedAllocator& below, TensorHeap* heap) : below_(below), heap_(heap) {}
  /// Takes its mutex at forks. For the one that lives until the process ends.
  void lock_at_forks();

  /// @throws OutOfMemory  with numbers of resident bytes, or that of `Relief` for `max_overhead`; nothing has been
  /// allocated.
  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override { below_.deallocate(data, bytes); }

  /// @param limit  > 0, `kNoLimit` for none.
  void set_limit(Bytes limit);
  Bytes limit() const { return limit_.load(); }
  /// Bytes of tensors that a plan may use under the limit: the limit less what is beside the heap now and the reserve,
  /// less a 16th of the rest for pages that nothing fits into. 0 if nothing is left. Only with a limit.
  Bytes room_for_tensors();

  /// Sets the relief, as in `LimitingAllocator`: called for the missing bytes when nothing free is left.
  void set_relief(LimitingAllocator::Relief* relief, const LimitingAllocator& counts) {
    counts_ = &counts;
    relief_.store(relief);
  }

 private:
  /// Resident bytes above the limit less the reserve, if all pages of the heap were touched.
  Bytes over();
  void make_room(Bytes missing, size_t requested);
  Bytes reserve();

  SizedAllocator& below_;
  TensorHeap* heap_;
  const LimitingAllocator* counts_ = nullptr;
  std::atomic<LimitingAllocator::Relief*> relief_{nullptr};
  std::atomic<Bytes> limit_{kNoLimit};
  OrderedMutex mutex_{LockOrder::kResident};  // guards what follows
  std::array<Bytes, 2> other_{};              ///< highest of this stretch of allocations and of the one before
  int in_stretch_ = 0;
  Bytes reserve_ = kLeastReserve;
  Bytes foreseen_ = 0;     ///< highest sum of held and other since the limit was set
  Bytes high_before_ = 0;  ///< `resident_high` then
};

}  // namespace refrain
