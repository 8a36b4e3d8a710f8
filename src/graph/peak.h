#pragma once

#include <vector>

#include "graph/schedule.h"

namespace refrain::graph {

/// The moment at which a step has most bytes in use, and what they are: `bytes` = those of `there` + `outside` + `made`
/// + `workspace`.
struct Peak {
  int64_t bytes = 0;
  OpId place = 0;
  OpId running = kNone;  ///< the operator that runs, perhaps again; none: before that of `place`, or at the end
  bool in_recompute = false;
  std::vector<ValueId> there;  ///< before what runs, by id
  int64_t outside = 0;         ///< of no value; in a gap, all that are
  int64_t made = 0;            ///< by what runs: its outputs, and copies of what it overwrites
  int64_t workspace = 0;       ///< of what runs; may be negative
};

/// @param schedule  one that runs. Cost: as `simulate`, twice.
Peak find_peak(const Graph& graph, const Schedule& schedule);

/// What is there at the start of the operator of `place`, after the place's actions, by id; temporaries too. @param
/// schedule  one that runs.
std::vector<ValueId> values_there(const Graph& graph, const Schedule& schedule, OpId place);

}  // namespace refrain::graph
