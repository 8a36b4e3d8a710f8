#include "refrain/explain_plan.h"

#include "budget/step_state.h"
#include "graph/explain.h"
#include "refrain/error.h"

namespace refrain {
namespace {

PlanExplanation explained(const graph::Graph& graph, const graph::Schedule& schedule, size_t most_holders) {
  const auto explanation = graph::explain(graph, schedule, most_holders);
  if (!explanation.error.empty())
    throw InternalError("[refrain::explain] the plan's schedule cannot run: " + explanation.error);
  const std::string model = graph.model.empty() ? "" : graph.model + ": ";
  return {model + graph::to_text(explanation), graph::to_json(explanation, graph.model)};
}

}  // namespace

PlanExplanation explain(const StepPlan& plan, size_t most_holders) {
  return explained(plan.state().graph, plan.state().plan.schedule, most_holders);
}

PlanExplanation explain(const StepTrace& trace, size_t most_holders) {
  const auto& graph = trace.state().graph;
  budget::check_trace(graph, "explain");
  return explained(graph, graph::empty_schedule(graph), most_holders);
}

}  // namespace refrain
