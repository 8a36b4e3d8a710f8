#pragma once

#include "plan/plan.h"
#include "refrain/memory_budget.h"

namespace refrain {

struct StepTrace::State {
  graph::Graph graph;
  graph::Schedule recorded;  ///< what a cap did in it
};

struct StepPlan::State {
  graph::Graph graph;
  plan::Plan plan;
};

namespace budget {

/// Before a traced step is planned for. @param who  as "MemoryBudget". @throws InvalidArgument if the trace has a defect, and says what to do.
void check_trace(const graph::Graph& graph, const char* who);

}  // namespace budget
}  // namespace refrain
