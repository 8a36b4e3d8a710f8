#pragma once

#include <c10/core/Storage.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "refrain/activation_checkpointing.h"
#include "tape/offload.h"

namespace refrain {

/// Stores inputs of one size side by side in blocks of `slots` places; see `contiguous_memory_optimization`.
/// Threads: any. Stored inputs may outlive it.
class InputArena {
 public:
  /// @param slots  >= 1.
  explicit InputArena(int64_t slots) : slots_(slots) {}
  std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes);
  std::vector<ArenaProfile> profile() const;
  void reset_profile();

 private:
  class Shelf;
  class InSlot;

  const int64_t slots_;
  mutable std::mutex mutex_;  ///< guards the map, not the shelves
  std::map<std::tuple<size_t, c10::DeviceType, c10::DeviceIndex>, std::shared_ptr<Shelf>> shelves_;
};

}  // namespace refrain
