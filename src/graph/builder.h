#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace refrain::graph {

/// Puts a graph together operator by operator and works out lifetimes: values die after their last use, unless told to
/// stay; sources at the end.
class Builder {
 public:
  /// A source that is there before the next operator.
  ValueId source(int64_t bytes);

  /// What an operator that cannot run again wrote over `old`, which is there: a source that is there before the next
  /// one.
  ValueId source_over(ValueId old);

  /// Begins an operator; `output` and `overwrite` are about the last one. @return it, to set more; until the next `op`.
  Op& op(std::string name, std::vector<ValueId> inputs, int64_t ns = 1);
  ValueId output(int64_t bytes);
  /// `old` must be there and not overwritten.
  ValueId overwrite(ValueId old);

  const Op& last() const { return graph_.ops.back(); }
  OpId last_op() const { return static_cast<OpId>(graph_.ops.size()) - 1; }
  const Value& value(ValueId id) const { return graph_.values[static_cast<size_t>(id)]; }
  Value& value(ValueId id) { return graph_.values[static_cast<size_t>(id)]; }
  bool is_overwritten(ValueId id) const { return overwritten_[static_cast<size_t>(id)] != kNone; }

  /// It is there until the end, or until overwritten.
  void keep_to_end(ValueId id) { stays_[static_cast<size_t>(id)] = true; }

  Graph finish();

 private:
  ValueId add(Value value, bool stays);

  Graph graph_;
  std::vector<OpId> overwritten_;  // first place of what overwrote it
  std::vector<char> stays_;
};

}  // namespace refrain::graph
