#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "plan/plan.h"
#include "refrain/error.h"

/// Plans as JSON documents, `"kind"` `plan`, `"version"` 1: the numbers of `Plan`, the `fingerprint` of the graph,
/// `graph` and `schedule` as in graph/json.h. Phases are not kept.
namespace refrain::plan {

std::string to_json(const graph::Graph& graph, const Plan& plan);

struct PlannedGraph {
  graph::Graph graph;
  Plan plan;
};

/// Plan and graph of a document, of any bytes. Peak and added time are worked out anew; a refusal is a value: not JSON,
/// another kind or version, a graph or schedule that is not right, a schedule that cannot run.
std::variant<PlannedGraph, FormatError> read_plan(std::string_view text);

/// The plan for a step traced again: `graph` must be the same but for times, workspace and bytes outside, of which peak
/// and added time are worked out anew. Whether it still fits its budget, `is_feasible` says.
std::variant<Plan, FormatError> read_plan(std::string_view text, const graph::Graph& graph);

}  // namespace refrain::plan
