#pragma once

#include <vector>

#include "graph/schedule.h"

namespace refrain::graph {

/// The peak of a step: when, and of what. `bytes` = those of `there` + `outside` + `made` + `workspace`.
struct Peak {
  int64_t bytes = 0;
  OpId place = 0;
  OpId running = kNone;  ///< the operator that runs or is recomputed; none: before that of `place`, or at the end
  bool in_recompute = false;
  std::vector<ValueId> there;  ///< values resident before the operator runs, by id
  int64_t outside = 0;         ///< bytes of no value; in a gap, all of them
  int64_t made = 0;            ///< by the operator: its outputs, and copies of what it overwrites
  int64_t workspace = 0;       ///< of the operator; may be negative
};

/// Finds the peak. @param schedule  one that runs. Cost: as `simulate`, twice.
Peak find_peak(const Graph& graph, const Schedule& schedule);

/// Lists the values resident at the start of the operator of `place`, after the place's actions, by id; temporaries
/// too.
/// @param schedule  one that runs.
std::vector<ValueId> values_there(const Graph& graph, const Schedule& schedule, OpId place);

}  // namespace refrain::graph
