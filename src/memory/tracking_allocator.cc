#include "memory/tracking_allocator.h"

#include <algorithm>

namespace refrain {
namespace {

void raise(std::atomic<Bytes>& peak, Bytes level) {
  Bytes seen = peak.load();
  while (seen < level && !peak.compare_exchange_weak(seen, level)) {
  }
}

}  // namespace

void* TrackingAllocator::allocate(size_t bytes) {
  void* data = below_.allocate(bytes);
  const Bytes level = current_.fetch_add(static_cast<Bytes>(bytes)) + static_cast<Bytes>(bytes);
  allocations_.fetch_add(1);
  raise(peak_, level);
  if (open_watches_.load() > 0) raise_watched_peaks(level);
  return data;
}

void TrackingAllocator::deallocate(void* data, size_t bytes) noexcept {
  // before the memory goes back: another thread may get it and count it at once
  current_.fetch_sub(static_cast<Bytes>(bytes));
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

void TrackingAllocator::raise_watched_peaks(Bytes level) {
  std::lock_guard lock(mutex_);
  for (Watch* watch : watches_) raise(watch->peak, level);
}

}  // namespace refrain
