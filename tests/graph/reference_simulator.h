#pragma once

#include "graph/schedule.h"

namespace refrain::graph {

/// `simulate` once more, written from the rules of graph.h and schedule.h alone, with a heap of blocks whose bytes are
/// added up at every event. Slow.
///
/// An error is the place alone, as the one of `simulate` begins.
Simulation reference_simulate(const Graph& graph, const Schedule& schedule);

}  // namespace refrain::graph
