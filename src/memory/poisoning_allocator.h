#pragma once

#include <atomic>
#include <cstring>

#include "memory/sized_allocator.h"

namespace refrain {

/// Fills new memory with 0xCB and freed memory with 0xDD while switched on, for tests. A fresh heap is often zero, or
/// still holds the right bytes, and hides reads of memory that was never written or is already freed.
class PoisoningAllocator final : public SizedAllocator {
 public:
  static constexpr int kNew = 0xCB;    ///< as float: -2.67e7
  static constexpr int kFreed = 0xDD;  ///< as float: -2.00e18

  explicit PoisoningAllocator(SizedAllocator& below) : below_(below) {}

  void set_on(bool on) { on_.store(on); }

  void* allocate(size_t bytes) override {
    void* data = below_.allocate(bytes);
    if (on_.load()) std::memset(data, kNew, bytes);
    return data;
  }

  void deallocate(void* data, size_t bytes) noexcept override {
    if (on_.load()) {
      std::memset(data, kFreed, bytes);
      // or the compiler drops the stores, since free() follows
      __asm__ volatile("" : : "r"(data) : "memory");
    }
    below_.deallocate(data, bytes);
  }

 private:
  SizedAllocator& below_;
  std::atomic<bool> on_{false};
};

}  // namespace refrain
