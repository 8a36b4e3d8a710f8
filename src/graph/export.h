#pragma once

#include <string>

#include "graph/schedule.h"

namespace refrain::graph {

/// Draws for Graphviz: operators as boxes in clusters by scope, values as ovals. With a schedule (null: none), blue
/// values are kept, yellow ones are dropped and recomputed, green ones dropped for good; sources are grey; operators
/// say how often they run.
std::string to_dot(const Graph& graph, const Schedule* schedule = nullptr);

/// Writes for Perfetto or chrome://tracing, in the trace event format: operators on one row, recomputed ones and drops
/// on another; counters of the bytes in use at the start of operators and of the peak since the one before. Operators
/// follow each other without pause.
/// @param schedule  one that runs.
std::string to_chrome_trace(const Graph& graph, const Schedule& schedule);

}  // namespace refrain::graph
