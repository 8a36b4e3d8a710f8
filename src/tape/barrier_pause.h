#pragma once

#include <c10/util/SmallVector.h>

#include "tape/tape.h"

namespace refrain::tape {

/// Lifts the raw-pointer barriers of an operator's arguments while it runs: kernels ask for pointers to write through where they only read.
class BarrierPause {
 public:
  BarrierPause() = default;
  BarrierPause(const BarrierPause&) = delete;
  BarrierPause& operator=(const BarrierPause&) = delete;
  void lift(Value* value, const c10::Storage& storage) {
    if (!value->armed) return;
    disarm(value, storage.unsafeGetStorageImpl());
    lifted_.push_back(storage);
  }
  void restore(TapeLock& lock) {
    for (const auto& storage : lifted_) {
      auto* value = find_value(lock, storage.unsafeGetStorageImpl());
      if (value && value->producer) arm(value, storage.unsafeGetStorageImpl());
    }
    lifted_.clear();
  }
  bool empty() const { return lifted_.empty(); }

 private:
  c10::SmallVector<c10::Storage, 3> lifted_;
};

}  // namespace refrain::tape
