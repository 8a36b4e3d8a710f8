#include "memory/tracking_allocator.h"

#include <algorithm>

#include "base/fork.h"

namespace refrain {
namespace {

void raise(std::atomic<Bytes>& peak, Bytes level) {
  Bytes seen = peak.load();
  while (seen < level && !peak.compare_exchange_weak(seen, level)) {
  }
}

}  // namespace

void TrackingAllocator::lock_at_forks() { lock_at_fork(mutex_); }

void* TrackingAllocator::allocate(size_t bytes) {
  void* data = below_.allocate(bytes);
  allocations_.fetch_add(1);
  if (observer_.load(std::memory_order_relaxed)) {
    count_observed(data, static_cast<Bytes>(bytes));
    return data;
  }
  const Bytes level = current_.fetch_add(static_cast<Bytes>(bytes)) + static_cast<Bytes>(bytes);
  raise(peak_, level);
  if (open_watches_.load() > 0) raise_watched_peaks(level);
  return data;
}

void TrackingAllocator::deallocate(void* data, size_t bytes) noexcept {
  // before the memory is freed: another thread may get it and count it at once
  if (observer_.load(std::memory_order_relaxed)) {
    count_observed(data, -static_cast<Bytes>(bytes));
  } else {
    current_.fetch_sub(static_cast<Bytes>(bytes));
  }
  below_.deallocate(data, bytes);
}

MemoryStats TrackingAllocator::stats() const {
  MemoryStats stats;
  stats.current = current_.load();
  // another thread may be between its addition and its peak
  stats.peak = std::max(peak_.load(), stats.current);
  stats.allocations = allocations_.load();
  return stats;
}

void TrackingAllocator::reset_peak() {
  peak_.store(0);
  raise(peak_, current_.load());
}

void TrackingAllocator::open(Watch& watch) {
  std::lock_guard lock(mutex_);
  watches_.push_back(&watch);
  // announced before the level is read: an allocation not in the level sees the announcement
  open_watches_.fetch_add(1);
  watch.start = current_.load();
  watch.peak.store(watch.start);
  watch.first_allocation = allocations_.load();
}

void TrackingAllocator::close(Watch& watch) {
  std::lock_guard lock(mutex_);
  watches_.erase(std::find(watches_.begin(), watches_.end(), &watch));
  open_watches_.fetch_sub(1);
}

Bytes TrackingAllocator::set_observer(Observer* observer) {
  std::lock_guard lock(mutex_);
  observer_.store(observer);
  return current_.load();
}

// Under the mutex, so that the observer sees the levels in their order.
void TrackingAllocator::count_observed(const void* data, Bytes bytes) {
  std::lock_guard lock(mutex_);
  const Bytes level = current_.fetch_add(bytes) + bytes;
  Observer* observer = observer_.load();
  if (bytes > 0) {
    raise(peak_, level);
    for (Watch* watch : watches_) raise(watch->peak, level);
    if (observer) observer->allocated(data, bytes, level);
  } else if (observer) {
    observer->released(data, -bytes, level);
  }
}

void TrackingAllocator::raise_watched_peaks(Bytes level) {
  std::lock_guard lock(mutex_);
  for (Watch* watch : watches_) raise(watch->peak, level);
}

}  // namespace refrain
