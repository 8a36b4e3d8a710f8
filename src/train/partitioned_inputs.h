#pragma once

#include <c10/core/Storage.h>

#include <atomic>
#include <functional>
#include <memory>

#include "refrain/distributed.h"
#include "tape/offload.h"

namespace refrain {

/// Keeps 1 / world of each input; see `ActivationCheckpointingOptions::partition_activations`.
/// Threads: one at a time, on all ranks in the same order. Stored inputs may outlive it.
class PartitionedInputs {
 public:
  /// Stores this rank's part; null keeps it in memory.
  using StorePart = std::function<std::shared_ptr<tape::Offloaded>(const c10::Storage& part)>;

  explicit PartitionedInputs(ProcessGroup group) : group_(std::move(group)) {}
  /// @returns null if it is too small to be worth it.
  std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes, const StorePart& store_part);

 private:
  const ProcessGroup group_;
  std::atomic<int64_t> next_number_{0};
};

}  // namespace refrain
