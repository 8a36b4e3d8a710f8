#pragma once

#include <atomic>
#include <vector>

#include "base/ordered_mutex.h"
#include "memory/sized_allocator.h"
#include "refrain/memory.h"

namespace refrain {

/// Counts allocations: current bytes, their peak, and how many.
///
/// Cost: three atomic operations an allocation, one a release; a mutex an allocation while a `Watch` is open, and each
/// time while there is an `Observer`. Exact when threads meet: an atomic addition tells each allocation the level it made.
/// Only an allocation in progress while a peak is reset, a watch opened or an observer set may count on either side.
class TrackingAllocator final : public SizedAllocator {
 public:
  /// A period with its own peak, which `reset_peak` does not touch.
  struct Watch {
    Bytes start = 0;               ///< level at `open`
    std::atomic<Bytes> peak{0};    ///< highest level since, absolute
    int64_t first_allocation = 0;  ///< allocations before `open`
  };

  /// Observes allocations and frees one at a time, in the order of the levels. Must not allocate from this stack.
  class Observer {
   public:
    /// @param level  current bytes afterwards.
    virtual void allocated(const void* data, Bytes bytes, Bytes level) noexcept = 0;
    virtual void released(const void* data, Bytes bytes, Bytes level) noexcept = 0;

   protected:
    ~Observer() = default;
  };

  explicit TrackingAllocator(SizedAllocator& below) : below_(below) {}
  /// Takes its mutex at forks. For the one that lives until the process ends.
  void lock_at_forks();

  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override;

  Bytes current() const { return current_.load(); }
  int64_t allocations() const { return allocations_.load(); }
  MemoryStats stats() const;
  void reset_peak();

  /// @param watch  must not move until `close`. Watches may overlap and close in any order.
  void open(Watch& watch);
  void close(Watch& watch);

  /// Sets the one observer, null for none; the former one is not called after this returns. Returns the current bytes.
  Bytes set_observer(Observer* observer);

 private:
  void count_observed(const void* data, Bytes bytes);
  void raise_watched_peaks(Bytes level);

  SizedAllocator& below_;
  std::atomic<Bytes> current_{0};
  std::atomic<Bytes> peak_{0};
  std::atomic<int64_t> allocations_{0};
  std::atomic<int> open_watches_{0};
  std::atomic<Observer*> observer_{nullptr};  // set under the mutex
  OrderedMutex mutex_{LockOrder::kTracking};  // guards watches_, and counting while there is an observer
  std::vector<Watch*> watches_;
};

}  // namespace refrain
