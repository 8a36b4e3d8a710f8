#pragma once

#include <string>

#include "graph/schedule.h"

namespace refrain::graph {

/// For Graphviz: operators as boxes in clusters by scope, values as ovals. With a schedule (null: none), blue values
/// are kept, yellow ones are dropped and recomputed, green ones dropped for good; sources are grey; operators say how
/// often they run.
std::string to_dot(const Graph& graph, const Schedule* schedule = nullptr);

/// For Perfetto or chrome://tracing, in the trace event format: operators on one row, those that run again and drops on
/// another; counters of the bytes in use at the start of operators and of the most since the one before. Operators
/// follow each other without pause.
/// @param schedule  one that runs.
std::string to_chrome_trace(const Graph& graph, const Schedule& schedule);

}  // namespace refrain::graph
