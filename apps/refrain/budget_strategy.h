#pragma once

#include <functional>
#include <string>

#include "models/zoo.h"
#include "plan/plan.h"
#include "refrain/bytes.h"
#include "refrain/memory_budget.h"

namespace refrain::cli {

/// Bytes, as 400MiB, or a fraction from 0, the lowest peak, to 1, that of the baseline: a number without a unit.
/// @param what  it is the budget of, for messages: "--budget". @throws InvalidArgument
plan::Budget parse_budget(const std::string& text, const std::string& what);

/// `budget:0.5`, `budget:400MiB`: not of a model, but of the step around it, which runs as under `none`.
bool is_budget(const std::string& strategy);

/// The budget after the colon. @throws InvalidArgument
plan::Budget budget_of(const std::string& strategy);

/// The same as the library takes it. @param level  added to bytes: 0 if they are absolute
Budget as_budget(const plan::Budget& budget, Bytes level = 0);

/// What `strategy` asks of the model itself. @throws InvalidArgument on an unknown one, or a budget that is none.
void set_model_strategy(models::TrainableModel& model, const std::string& strategy);

/// A plan for steps like `step`, of which it runs one.
struct PlannedBudget {
  refrain::StepPlan plan;
  Bytes level = 0;  ///< in use before that step

  /// Most bytes over the level.
  Bytes peak() const { return plan.peak() - level; }
};

/// Bytes of the budget are over the level.
/// @param step  forward and backward, from no gradients. @throws InvalidArgument if no plan fits the budget: says the
/// lowest peak.
PlannedBudget plan_budget(const std::string& strategy, const std::function<void()>& step, const std::string& model);

}  // namespace refrain::cli
