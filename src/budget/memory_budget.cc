#include "refrain/memory_budget.h"

#include <memory>

#include "budget/budgeted_step.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"

namespace refrain {
namespace {

constexpr Bytes kNoLimit = Bytes{1} << 62;

}  // namespace

struct MemoryBudget::State {
  template <typename L, typename B>
  State(L limit, const B& budget) : cap(limit), step(budget), listening(step) {}

  MemoryCap cap;
  budget::BudgetedStep step;
  tape::ListenerScope listening;
};

MemoryBudget::MemoryBudget(Budget budget) {
  switch (budget.kind()) {
    case Budget::Kind::kBytes:
      state_ = std::make_unique<State>(budget.bytes(), plan::Budget::of_bytes(budget.bytes()));
      break;
    case Budget::Kind::kFraction:
      state_ = std::make_unique<State>(kNoLimit, plan::Budget::of_fraction(budget.fraction()));
      break;
    case Budget::Kind::kProcess:
      state_ = std::make_unique<State>(budget, budget::OfProcess());
      break;
  }
}

MemoryBudget::MemoryBudget(const StepPlan& plan) : state_(std::make_unique<State>(kNoLimit, plan)) {}

MemoryBudget::~MemoryBudget() = default;

MemoryBudgetStats MemoryBudget::stats() const { return state_->step.stats(); }

std::string MemoryBudget::report() const { return state_->step.report(); }

}  // namespace refrain
