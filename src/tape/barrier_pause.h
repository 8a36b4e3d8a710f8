#pragma once

#include <c10/util/SmallVector.h>

#include "tape/barrier.h"

namespace refrain::tape {

/// Lifts the raw-pointer barriers of an operator's arguments while it runs: kernels request writable pointers where
/// they only read.
class BarrierPause {
 public:
  BarrierPause() = default;
  BarrierPause(const BarrierPause&) = delete;
  BarrierPause& operator=(const BarrierPause&) = delete;
  /// Lifts the barrier of `value`, which is in the map. @return whether it had one.
  bool lift(Value* value) {
    if (!value->armed) return false;
    disarm(value, value->key);
    arm_after(value);
    return true;
  }
  /// Arms `value`, which is in the map, after the operator that reads it: a request for a pointer after that is a
  /// write.
  void arm_after(Value* value) {
    retain(value);
    values_.push_back(value);
  }
  /// Restores the barriers of values that are still in their storage. Must be called before the end.
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
