#include "refrain/memory_budget.h"

#include <fmt/format.h>

#include <optional>

#include "budget/budgeted_step.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"

namespace refrain {
namespace {

constexpr Bytes kNoLimit = Bytes{1} << 62;

double checked(double fraction) {
  if (fraction >= 0.0 && fraction <= 1.0) return fraction;
  throw InvalidArgument(fmt::format("[refrain::MemoryBudget] `fraction` is {}, expected 0.0 (least memory) to 1.0 (least time), or bytes", fraction));
}

}  // namespace

struct MemoryBudget::State {
  template <typename L, typename B>
  State(L limit, const B& budget) : cap(limit), step(budget), listening(step) {}

  MemoryCap cap;
  budget::BudgetedStep step;
  tape::ListenerScope listening;
};

MemoryBudget::MemoryBudget(double fraction)
    : state_(std::make_unique<State>(kNoLimit, plan::Budget::of_fraction(checked(fraction)))) {}

MemoryBudget::MemoryBudget(Limit limit) : state_(std::make_unique<State>(limit.bytes, plan::Budget::of_bytes(limit.bytes))) {}

MemoryBudget::MemoryBudget(Budget budget)
    : state_(budget.kind() == Budget::Kind::kTensors
                 ? std::make_unique<State>(budget.bytes(), plan::Budget::of_bytes(budget.bytes()))
                 : std::make_unique<State>(budget, budget::OfProcess())) {}

MemoryBudget::MemoryBudget(const StepPlan& plan) : state_(std::make_unique<State>(kNoLimit, plan)) {}

MemoryBudget::~MemoryBudget() = default;

MemoryBudgetStats MemoryBudget::stats() const { return state_->step.stats(); }

std::string MemoryBudget::report() const { return state_->step.report(); }

}  // namespace refrain
