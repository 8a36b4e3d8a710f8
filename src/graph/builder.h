#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace refrain::graph {

/// Builds a graph operator by operator and computes lifetimes: values die after their last use, unless `keep_to_end`
/// says otherwise; sources at the end.
class Builder {
 public:
  /// Adds a source that is resident before the next operator.
  ValueId source(int64_t bytes);

  /// Adds the value that an operator that cannot be recomputed wrote over `old`, which is resident: a source that is
  /// resident before the next operator.
  ValueId source_over(ValueId old);

  /// Begins an operator; `output` and `overwrite` are about the last one. @return it, to set more; until the next `op`.
  Op& op(std::string name, std::vector<ValueId> inputs, int64_t ns = 1);
  ValueId output(int64_t bytes);
  /// Overwrites `old`, which must be resident and not overwritten.
  ValueId overwrite(ValueId old);

  const Op& last() const { return graph_.ops.back(); }
  OpId last_op() const { return static_cast<OpId>(graph_.ops.size()) - 1; }
  const Value& value(ValueId id) const { return graph_.values[static_cast<size_t>(id)]; }
  Value& value(ValueId id) { return graph_.values[static_cast<size_t>(id)]; }
  bool is_overwritten(ValueId id) const { return overwritten_[static_cast<size_t>(id)] != kNone; }

  /// Makes the value resident until the end, or until it is overwritten.
  void keep_to_end(ValueId id) { stays_[static_cast<size_t>(id)] = true; }

  Graph finish();

 private:
  ValueId add(Value value, bool stays);

  Graph graph_;
  std::vector<OpId> overwritten_;  // first place of the value that overwrote it
  std::vector<char> stays_;
};

}  // namespace refrain::graph
