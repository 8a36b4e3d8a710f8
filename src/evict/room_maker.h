#pragma once

#include <mutex>
#include <vector>

#include "evict/eviction_queue.h"
#include "memory/limiting_allocator.h"
#include "refrain/memory_cap.h"

namespace refrain::budget {

/// Decides what leaves memory when an allocation would break the limit.
class RoomMaker final : public LimitingAllocator::Relief {
 public:
  /// The process's. Never destroyed: an allocation may be about to call it.
  static RoomMaker& get();

  /// Evicts, by the heuristic in force, until `missing` bytes are free. @throws OutOfMemory if nothing can leave, or the step
  /// takes too long.
  void make_room(Bytes missing, Bytes requested, Bytes limit) override;

  /// Evicts all that can leave. For tests.
  void evict_all();

  /// Options of the innermost cap come last. Returns a number for `remove`.
  int add(const MemoryCapOptions& options);
  void remove(int number);

  int64_t policy_ns() const { return choosing_ns_.load(); }
  /// Times that it threw `OutOfMemory` since the process began.
  int64_t refusals() const { return refusals_.load(); }

 private:
  RoomMaker();
  MemoryCapOptions options();
  /// In a forked child, which begins without caps. What is evicted there is recomputed when it is read.
  void forget_caps();
  /// @return bytes that left.
  Bytes evict_until(Bytes missing);
  Bytes evict_queued(tape::TapeLock& lock, Bytes missing);
  /// @throws OutOfMemory if the step has taken too long. Needs no lock held.
  void check_overhead(Bytes limit);

  std::mutex mutex_;  // guards what follows
  std::vector<std::pair<int, MemoryCapOptions>> options_;
  int last_number_ = 0;
  std::atomic<int64_t> choosing_ns_{0};
  std::atomic<int64_t> refusals_{0};
  EvictionQueue queue_;  ///< under the tape's lock, as what follows
  uint64_t step_ = 0;    ///< that the queue was last looked at in
};

}  // namespace refrain::budget
