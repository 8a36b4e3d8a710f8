#pragma once

#include <string>
#include <vector>

#include "apps/refrain/json_file.h"
#include "plan/plan.h"

namespace refrain::cli {

/// Plans of one kind for several budgets: a line of the drawing.
struct PlanSeries {
  std::string name;
  std::vector<plan::Plan> plans;
};

/// Adds what the report needs to draw a `pareto` document: `config`, `machine`, `plain`, `floor_bytes` and `series`,
/// which are those given without plans over budget and, if the first has bounds, the line that no plan is below.
void add_series(Json& document, const graph::Graph& graph, const std::vector<PlanSeries>& series);

}  // namespace refrain::cli
