#pragma once

#include <cstdint>

#include "graph/schedule.h"

namespace refrain::graph {

struct RandomGraphOptions {
  int32_t forward_ops = 12;  ///< at most
  int32_t sources = 3;       ///< at most; at least 1
  double in_place = 0.2;     ///< part of the operators
  double no_read = 0.05;     ///< part of those in place that overwrite without reading
  double not_replayable = 0.1;
  double not_evictable = 0.1;
  double outlives = 0.05;   ///< part of the values that live until the end
  double late_death = 0.2;  ///< part of the values that live some time after their last use
  int64_t most_bytes = 100;
  int64_t most_ns = 20;
  bool backward = true;  ///< reads values of forward in about the opposite order
  bool outside = true;   ///< bytes of no value, gaps, workspace
};

/// Makes a step without defect: sources with any live range, several outputs, dead ones, chains in place, long live
/// ranges. Deterministic.
Graph random_graph(uint64_t seed, const RandomGraphOptions& options = {});

/// Makes drops and recomputations. @param wild  probability of each action to be one that may not be allowed; 0 gives
/// schedules that run.
Schedule random_schedule(const Graph& graph, uint64_t seed, double wild = 0.0);

}  // namespace refrain::graph
