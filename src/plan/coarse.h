#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "graph/graph.h"

namespace refrain::plan {

using graph::OpId;
using graph::ValueId;

/// A row of ids for each index, in one block of memory.
class Rows {
 public:
  Rows() = default;
  /// @param pairs  (index, id); ids of a row keep their order.
  Rows(size_t rows, const std::vector<std::pair<int32_t, int32_t>>& pairs);
  std::span<const int32_t> operator[](int32_t row) const {
    const auto r = static_cast<size_t>(row);
    return {ids_.data() + first_[r], first_[r + 1] - first_[r]};
  }

 private:
  std::vector<uint32_t> first_;
  std::vector<int32_t> ids_;
};

/// A graph as planners see it: who needs what where, and what no decision changes.
///
/// Time is cut into *slots*, two for each place p: 2p is the gap before operator p, until drops and recomputations
/// begin; 2p + 1 is from there to the end of operator p. A value that may be dropped is *movable*. All others are
/// resident from birth to death and make `fixed`, together with what no decision changes: the slots in which a movable
/// value is read or made.
///
/// Coarsening: values of no bytes, and those below `tiny_bytes`, are not movable; values overwritten or dead right
/// after their making are never kept across places and so fold into the recomputation that passes them by.
struct Problem {
  struct Item {
    int64_t bytes = 0;
    OpId producer = graph::kNone;
    OpId first = 0;  ///< first place where it is resident
    OpId death = 0;  ///< first place where it is dead; number of operators + 1: outlives the step
    bool movable = false;
    bool overwrites = false;   ///< took over a storage
    bool overwritten = false;  ///< another takes over its storage
  };

  /// `graph` must have no defect and outlive this. Cost: linear.
  explicit Problem(const graph::Graph& graph, int64_t tiny_bytes = 0);

  const graph::Op& op(OpId id) const { return graph->ops[static_cast<size_t>(id)]; }
  const Item& item(ValueId id) const { return items[static_cast<size_t>(id)]; }
  int32_t slots() const { return 2 * ends + 2; }
  /// Whether the value is resident there whatever is decided.
  bool is_there_anyway(ValueId id, OpId place) const {
    const Item& v = item(id);
    return !v.movable && v.first <= place && place < v.death;
  }

  const graph::Graph* graph;
  OpId ends = 0;  ///< number of operators, also the last place
  std::vector<Item> items;
  Rows needs;                  ///< by place: movable values that must be resident when its operator runs
  Rows reads;                  ///< by movable value: places that need it, rising
  std::vector<int64_t> fixed;  ///< bytes by slot
  std::vector<int64_t> made;   ///< by operator: bytes of outputs that overwrite nothing
  OpId backward_begins = 0;    ///< first operator of backward, or `ends`
};

}  // namespace refrain::plan
