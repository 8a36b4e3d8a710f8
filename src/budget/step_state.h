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

}  // namespace refrain
