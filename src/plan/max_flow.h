#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace refrain::plan {

/// Finds a least cut between node 0 (source) and node 1 (sink).
///
/// Source: Dinitz, "Algorithm for solution of a problem of maximum flow in a network with power estimation", 1970.
class MaxFlow {
 public:
  static constexpr int64_t kInfinite = int64_t{1} << 60;

  explicit MaxFlow(int32_t nodes = 2) : first_(static_cast<size_t>(nodes), -1) {}
  int32_t add_node() {
    first_.push_back(-1);
    return static_cast<int32_t>(first_.size()) - 1;
  }
  /// @return the arc, for `set_capacity`.
  int32_t add_arc(int32_t from, int32_t to, int64_t capacity);
  void set_capacity(int32_t arc, int64_t capacity) { capacity_[static_cast<size_t>(arc)] = capacity; }

  /// @return value of the cut; `kInfinite` or more: there is none. Flow of an earlier call is forgotten.
  int64_t run();
  /// Nodes on the side of the source, after `run`.
  bool is_source_side(int32_t node) const { return level_[static_cast<size_t>(node)] >= 0; }
  int64_t steps() const { return steps_; }

 private:
  struct Arc {
    int32_t to, next;
    int64_t left;
  };
  bool find_levels();
  int64_t push();

  std::vector<Arc> arcs_;  // each followed by its reverse
  std::vector<int64_t> capacity_;
  std::vector<int32_t> first_, level_, at_, queue_, path_;
  int64_t steps_ = 0;
};

}  // namespace refrain::plan
