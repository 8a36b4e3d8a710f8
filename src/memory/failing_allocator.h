#pragma once

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdint>

#include "memory/sized_allocator.h"

namespace refrain {

/// Fails one chosen allocation, for tests, so that every path out of an exception can be walked.
class FailingAllocator final : public SizedAllocator {
 public:
  explicit FailingAllocator(SizedAllocator& below) : below_(below) {}

  /// Makes the `n`-th allocation from now (1 = the next), of all threads together, throw `c10::OutOfMemoryError`, once.
  /// @param n  0 or less switches it off.
  void fail_nth(int64_t n) {
    fired_.store(false);
    countdown_.store(n);
  }
  /// Whether the failure set last has happened.
  bool fired() const { return fired_.load(); }

  void* allocate(size_t bytes) override {
    // of threads that pass the first test together, one alone sees the 1
    if (countdown_.load() > 0 && countdown_.fetch_sub(1) == 1) {
      fired_.store(true);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "[refrain::memory_testing] this allocation of ", bytes,
                       " bytes fails on request");
    }
    return below_.allocate(bytes);
  }

  void deallocate(void* data, size_t bytes) noexcept override { below_.deallocate(data, bytes); }

 private:
  SizedAllocator& below_;
  std::atomic<int64_t> countdown_{0};
  std::atomic<bool> fired_{false};
};

}  // namespace refrain
