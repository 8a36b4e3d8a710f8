#pragma once

#include <c10/util/SmallVector.h>

#include "tape/barrier.h"

namespace refrain::tape {

/// Lifts the raw-pointer barriers of an operator's arguments while it runs: kernels ask for pointers to write through where they only read.
class BarrierPause {
 public:
  BarrierPause() = default;
  BarrierPause(const BarrierPause&) = delete;
  BarrierPause& operator=(const BarrierPause&) = delete;
  /// @param value  in the map. @return whether it had one.
  bool lift(Value* value) {
    if (!value->armed) return false;
    disarm(value, value->key);
    arm_after(value);
    return true;
  }
  /// The operator reads `value`, which is in the map: who asks for a pointer after it has run, writes.
  void arm_after(Value* value) {
    retain(value);
    values_.push_back(value);
  }
  /// Of what is still in its storage. Must come before the end.
  void restore(TapeLock& lock) {
    for (auto* value : values_) {
      if (value->key) arm(value, value->key);
      lock.release(value);
    }
    values_.clear();
  }
  bool empty() const { return values_.empty(); }

 private:
  c10::SmallVector<Value*, 4> values_;  ///< owned
};

}  // namespace refrain::tape
