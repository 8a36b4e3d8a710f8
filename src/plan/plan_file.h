#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "plan/plan.h"
#include "refrain/error.h"

/// Plans as JSON documents, `"kind"` `plan`, `"version"` 1: the numbers of `Plan`, the `fingerprint` of the graph,
/// `graph` and `schedule` as in graph/json.h. Phases are not kept.
namespace refrain::plan {

inline constexpr int64_t kPlanVersion = 1;  ///< of these documents

std::string to_json(const graph::Graph& graph, const Plan& plan);

struct PlannedGraph {
  graph::Graph graph;
  Plan plan;
};

/// Reads plan and graph of a document, of any bytes. Peak and added time are recomputed; an error is a value: not JSON,
/// another kind or version, a graph or schedule with a defect, a schedule that cannot run.
std::variant<PlannedGraph, FormatError> read_plan(std::string_view text);

/// Reads the plan for a later trace of the step: `graph` must be the same but for times, workspace and bytes outside,
/// from which peak and added time are recomputed. `is_feasible` says whether it still fits its budget.
std::variant<Plan, FormatError> read_plan(std::string_view text, const graph::Graph& graph);

}  // namespace refrain::plan
