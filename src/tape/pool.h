#pragma once

#include <atomic>
#include <cstddef>
#include <new>
#include <utility>

namespace refrain::tape {

/// Prefetches an object that will be read shortly. Kernels sweep the cache between any two accesses of the tape, and
/// waiting for one cache line after the other was most of the cost of recording. Nothing is read: `object` may be dead.
template <typename T>
void prefetch(const T* object) {
  constexpr size_t kLine = 64;
  for (size_t at = 0; at < sizeof(T); at += kLine)
    __builtin_prefetch(reinterpret_cast<const std::byte*>(object) + at, 1);
}

/// Reuses the memory of objects, last in, first out. A step makes thousands of operators and values and drops them all
/// in backward; the allocator's bins do not hold that many, and its slow path costs more than recording does.
/// Keeps at most `kMost` free blocks. Under AddressSanitizer nothing is kept, so that it sees each end of life.
template <typename T>
class Pool {
 public:
  /// Makes an object. Guarded by the tape's lock.
  template <typename... Args>
  T* make(Args&&... args) {
    if (!free_) free_ = returned_.exchange(nullptr, std::memory_order_acquire);
    if (!free_) return new T(std::forward<Args>(args)...);
    auto* block = std::exchange(free_, free_->next);
    kept_.fetch_sub(1, std::memory_order_relaxed);
    return ::new (static_cast<void*>(block)) T(std::forward<Args>(args)...);
  }

  /// Prefetches the memory of the next `make`. With the lock.
  void prefetch() const {
    if (free_) tape::prefetch(reinterpret_cast<const T*>(free_));
  }

  /// Destroys `object`. Any thread, with the lock or without: destructors that run foreign code must run without.
  void drop(T* object) noexcept {
    if (kMost == 0 || kept_.load(std::memory_order_relaxed) >= kMost) {
      delete object;
      return;
    }
    object->~T();
    kept_.fetch_add(1, std::memory_order_relaxed);
    auto* block = ::new (static_cast<void*>(object)) Block{returned_.load(std::memory_order_relaxed)};
    while (!returned_.compare_exchange_weak(block->next, block, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }

 private:
  struct Block {
    Block* next;
  };
#if defined(__SANITIZE_ADDRESS__)
  static constexpr ptrdiff_t kMost = 0;
#else
  static constexpr ptrdiff_t kMost = 8192;
#endif
  static_assert(sizeof(T) >= sizeof(Block) && alignof(T) <= alignof(std::max_align_t));

  Block* free_ = nullptr;  ///< only the holder of the lock takes blocks, so none can be returned to it meanwhile
  std::atomic<Block*> returned_{nullptr};
  std::atomic<ptrdiff_t> kept_{0};
};

}  // namespace refrain::tape
