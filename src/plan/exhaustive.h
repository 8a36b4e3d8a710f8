#pragma once

#include <cstdint>

#include "graph/schedule.h"
#include "plan/effort.h"

namespace refrain::plan {

struct ExhaustiveResult {
  enum class Status { kOptimal, kInfeasible, kLimit };
  Status status = Status::kLimit;
  graph::Schedule schedule;  ///< if optimal
  int64_t added_ns = 0;
};

/// Finds a shortest path over sets of resident values, place by place, with every drop and recomputation that
/// graph/schedule.h allows. For graphs of at most 64 values and few operators; ends with `kLimit` after `most_states`.
ExhaustiveResult search_exhaustively(const graph::Graph& graph, int64_t budget, size_t most_states, Effort& effort);

}  // namespace refrain::plan
