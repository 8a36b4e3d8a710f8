#pragma once

#include <string>

#include "graph/graph.h"

/// Scales a step to other batch sizes: every byte count and time is an affine function of the batch, through two traced
/// steps.
namespace refrain::graph {

/// Finds the first operator in which `a` and `b` differ by more than numbers: name, scope, what it reads and makes,
/// lifetimes; empty if there is none.
std::string find_difference(const Graph& a, const Graph& b);

struct BatchGraph {
  const Graph& graph;
  int64_t batch = 0;
};

/// Computes the step with `batch` examples. Bytes and times are rounded to whole ones and not below 0.
/// @throws InvalidArgument  if the two have one batch size, are different steps (names the first operator that
/// differs), or if numbers get too large.
Graph scale(const BatchGraph& one, const BatchGraph& other, int64_t batch);

struct ScaleError {
  double worst_peak = 0;   ///< |scaled - measured| / measured of the baseline's peak at a place, the worst of all
  OpId place = 0;          ///< where that is
  double worst_value = 0;  ///< the same for a value's bytes; values below 4 KiB in both are ignored
  ValueId value = kNone;
};

/// Compares a scaled step with the one measured at that batch size.
/// @throws InvalidArgument  if they are different steps.
ScaleError check(const Graph& scaled, const Graph& measured);

}  // namespace refrain::graph
