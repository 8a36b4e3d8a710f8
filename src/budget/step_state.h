#pragma once

#include "plan/plan.h"
#include "refrain/memory_budget.h"

namespace refrain {

struct StepTrace::State {
  graph::Graph graph;
  graph::Schedule recorded;  ///< a cap's decisions in it
};

struct StepPlan::State {
  graph::Graph graph;
  plan::Plan plan;
};

namespace budget {

/// Checks a traced step before planning. @param who  as "MemoryBudget". @throws InvalidArgument if the trace has a
/// defect.
void check_trace(const graph::Graph& graph, const char* who);

}  // namespace budget
}  // namespace refrain
