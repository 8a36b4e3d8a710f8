#pragma once

#include <vector>

#include "base/ordered_mutex.h"
#include "evict/eviction_queue.h"
#include "memory/limiting_allocator.h"
#include "refrain/memory_cap.h"

namespace refrain::budget {

/// Selects what to evict when an allocation would exceed the limit.
class RoomMaker final : public LimitingAllocator::Relief {
 public:
  /// Returns that of the process. Never destroyed: an allocation may be about to call it.
  static RoomMaker& get();

  /// Evicts, by the heuristic in force, until `missing` bytes are free. @throws OutOfMemory if nothing can be evicted,
  /// or the step exceeds `max_overhead`.
  void make_room(Bytes missing, Bytes requested, Bytes limit) override;
  void rose() noexcept override;
  void limit_lowered() noexcept override;

  /// Evicts everything evictable. For tests.
  void evict_all();

  /// Adds the options of a cap; the innermost cap's are last. Returns a number for `remove`.
  int add(const MemoryCapOptions& options);
  void remove(int number);

  int64_t policy_ns() const { return policy_ns_.load(); }
  /// Number of `OutOfMemory` it threw since the process began.
  int64_t refusals() const { return refusals_.load(); }

 private:
  RoomMaker();
  MemoryCapOptions options();
  /// Forgets the caps in a forked child, which begins without. What is evicted there is recomputed when it is read.
  void forget_caps();
  /// @return bytes that were evicted.
  Bytes evict_until(Bytes missing);
  Bytes evict_queued(tape::TapeLock& lock, Bytes missing);
  /// @throws OutOfMemory if the step exceeds `max_overhead`. Call it without the tape's lock.
  void check_overhead(Bytes limit);
  void check_before_pass();

  OrderedMutex mutex_{LockOrder::kRoom};  // guards what follows
  std::vector<std::pair<int, MemoryCapOptions>> options_;
  int last_number_ = 0;
  std::atomic<int64_t> policy_ns_{0};
  std::atomic<int64_t> refusals_{0};
  EvictionQueue queue_;  ///< guarded by the tape's lock, like the next
  uint64_t step_ = 0;    ///< in which the queue was last used
};

}  // namespace refrain::budget
