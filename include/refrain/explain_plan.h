#pragma once

#include <cstddef>
#include <string>

#include "refrain/api.h"
#include "refrain/memory_budget.h"

namespace refrain {

/// Describes what a plan evicts and recomputes, module by module, and what is resident at its peak; of a traced step,
/// only the latter.
struct PlanExplanation {
  std::string text;  ///< some dozen lines, as `refrain explain PLAN` prints; ends in a line break
  std::string json;  ///< the document `explain_plan` of docs/design/report.md
};

/// Explains a plan by simulating it.
///
/// @param most_holders  how many of the values that are resident at the peak to name, the largest first.
/// @throws InternalError  if the plan's schedule cannot run.
/// Cost: a simulation, some milliseconds for a step of thousands of operators. Threads: any.
[[nodiscard]] REFRAIN_API PlanExplanation explain(const StepPlan& plan, size_t most_holders = 12);

/// Explains what a traced step holds at its peak without any plan; as above.
/// @throws InvalidArgument  if the trace is defective.
[[nodiscard]] REFRAIN_API PlanExplanation explain(const StepTrace& trace, size_t most_holders = 12);

}  // namespace refrain
