#pragma once

#include <atomic>
#include <limits>

#include "memory/sized_allocator.h"
#include "refrain/bytes.h"

namespace refrain {

/// Refuses to go above a limit.
///
/// Bytes are reserved before the layer below is asked and given up after it has taken the memory back, so what the layers
/// below count never exceeds the limit, whatever the threads do.
/// Cost: one compare-exchange an allocation, one atomic operation a release.
class LimitingAllocator final : public SizedAllocator {
 public:
  static constexpr Bytes kNoLimit = std::numeric_limits<Bytes>::max();

  explicit LimitingAllocator(SizedAllocator& below) : below_(below) {}

  /// @throws c10::OutOfMemoryError  naming requested bytes, bytes in use and limit; nothing has been allocated.
  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override;

  /// @param limit  >= 0. Below what is in use, it refuses everything until enough has been freed. Returns the old limit.
  Bytes set_limit(Bytes limit) { return limit_.exchange(limit); }
  Bytes limit() const { return limit_.load(); }
  Bytes in_use() const { return in_use_.load(); }

 private:
  void reserve(size_t bytes);

  SizedAllocator& below_;
  std::atomic<Bytes> limit_{kNoLimit};
  std::atomic<Bytes> in_use_{0};
};

}  // namespace refrain
