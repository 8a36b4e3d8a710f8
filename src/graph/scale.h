#pragma once

#include <string>

#include "graph/graph.h"

/// The same step with other batch sizes: every byte count and time as an affine function of the batch, through two
/// steps that were traced.
namespace refrain::graph {

/// The first operator in which `a` and `b` are not the same step with other numbers: name, scope, what it reads and
/// makes, lifetimes; or empty.
std::string find_difference(const Graph& a, const Graph& b);

struct BatchGraph {
  const Graph& graph;
  int64_t batch = 0;
};

/// The step with `batch` examples. Bytes and times are rounded to whole ones and not below 0.
/// @throws InvalidArgument  if the two have one batch size, are different steps (names the first operator that
/// differs), or if numbers get too large.
Graph scale(const BatchGraph& one, const BatchGraph& other, int64_t batch);

struct ScaleError {
  double worst_peak = 0;   ///< |scaled - measured| / measured of the plain peak at a place, the worst of all places
  OpId place = 0;          ///< where that is
  double worst_value = 0;  ///< likewise of a value's bytes; values below 4 KiB in both are passed over
  ValueId value = kNone;
};

/// How far a step that was scaled is from the one measured at that batch size.
/// @throws InvalidArgument  if they are different steps.
ScaleError check(const Graph& scaled, const Graph& measured);

}  // namespace refrain::graph
