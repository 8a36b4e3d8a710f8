#pragma once

#include <cstdint>
#include <vector>

#include "tape/value.h"

namespace refrain::tape {

/// Evicted values that hang together, with the time to compute all of a class again: an estimate, in constant time, of what a walk would find.
/// A value that comes back is subtracted, but what it joined stays joined; when half have come back all is built anew.
/// Source: the equivalence classes of Kirisame et al., "Dynamic Tensor Rematerialization", ICLR 2021.
/// Threads: under the tape's lock.
class EvictedClasses {
 public:
  /// `value` was evicted. Joins the classes of the evicted values that its operator read.
  void add(Value& value);
  /// It is back, or gone.
  void remove(Value& value);
  /// @return whether so many have come back that `rebuild` is due.
  bool is_worn() const { return removed_ > 64 && removed_ > nodes_.size() / 2; }
  /// @param evicted  all there are.
  void rebuild(const std::vector<Value*>& evicted);

  /// Time of the class of an evicted value, once for each `visit`: 0 for a class that this visit has asked about.
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
