#pragma once

#include <cstdint>
#include <vector>

#include "tape/value.h"

namespace refrain::tape {

/// Classes of connected evicted values, with the time to recompute all of a class: an estimate in constant time of what
/// a walk over the ancestors would find. A value that is recomputed is subtracted, but the classes it joined stay
/// joined; after half of them are recomputed all is rebuilt.
/// Source: the equivalence classes of Kirisame et al., "Dynamic Tensor Rematerialization", ICLR 2021.
/// Threads: under the tape's lock.
class EvictedClasses {
 public:
  /// Adds a value that was evicted: joins the classes of the evicted values that its operator read.
  void add(Value& value);
  /// Removes a value that was recomputed or died.
  void remove(Value& value);
  /// Whether so many were removed that `rebuild` is due.
  bool is_worn() const { return removed_ > 64 && removed_ > nodes_.size() / 2; }
  /// @param evicted  all evicted values.
  void rebuild(const std::vector<Value*>& evicted);

  /// Time of the class of an evicted value, once for each `visit`: 0 for a class that this visit has counted.
  int64_t ns_once(const Value& value, uint64_t visit);

 private:
  struct Node {
    uint32_t parent;
    int64_t ns;
    uint64_t visit;
  };
  uint32_t root(uint32_t node);

  std::vector<Node> nodes_;
  size_t removed_ = 0;
};

}  // namespace refrain::tape
