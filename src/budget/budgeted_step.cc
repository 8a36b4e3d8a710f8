#include "budget/budgeted_step.h"

#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <chrono>

#include "tape/for_each_tensor.h"

namespace refrain::budget {
namespace {

uint64_t kind_of(const tape::OpTraits& traits, const torch::jit::Stack& stack) {
  size_t key = std::hash<std::string>()(traits.name());
  tape::for_each_tensor(stack.data() + (stack.size() - traits.num_args), traits.num_args,
                        [&](const at::Tensor& tensor, size_t, int32_t) {
                          if (tensor.defined() && tape::has_plain_storage(tensor))
                            for (const auto size : tensor.sizes()) key = c10::hash_combine(key, static_cast<size_t>(size));
                        });
  return key;
}

}  // namespace

BudgetedStep::BudgetedStep(const StepPlan& plan) : budget_(), may_trace_(false) {
  add(0, std::shared_ptr<const StepPlan::State>(std::make_shared<StepPlan>(plan), &plan.state()));
  running_ = &kinds_.begin()->second;
}

void BudgetedStep::add(uint64_t kind, std::shared_ptr<const StepPlan::State> state) {
  auto& made = kinds_[kind];
  made.state = std::move(state);
  made.plan = &made.state->plan;
  made.step = std::make_unique<tape::PlannedStep>(made.state->graph, made.plan->schedule);
  last_ = &made;
}

tape::StepListener* BudgetedStep::active() const {
  if (tracer_) return tracer_.get();
  return running_ ? running_->step.get() : nullptr;
}

void BudgetedStep::before(const tape::OpTraits& traits, const torch::jit::Stack& stack) {
  if (may_trace_ && !tracer_ && !(running_ && running_->step->is_under_way())) {
    running_ = nullptr;
    if (first_operator_.empty() || traits.name() == first_operator_) {
      const auto kind = kind_of(traits, stack);
      if (const auto known = kinds_.find(kind); known != kinds_.end()) {
        running_ = last_ = &known->second;
      } else if (kinds_.size() < kMostKinds) {
        traced_kind_ = kind;
        first_operator_ = traits.name();
        tracer_ = std::make_unique<tape::StepTracer>();
      }
    }
  }
  if (auto* listener = active()) listener->before(traits, stack);
}

void BudgetedStep::begins(tape::TapeLock& lock, const tape::OpTraits& traits, c10::ArrayRef<tape::Value*> operands) {
  if (auto* listener = active()) listener->begins(lock, traits, operands);
}

void BudgetedStep::recorded(tape::TapeLock& lock, const tape::Op& op) {
  if (auto* listener = active()) listener->recorded(lock, op);
}

void BudgetedStep::ends(tape::TapeLock& lock) {
  if (auto* listener = active()) listener->ends(lock);
}

void BudgetedStep::evicted(tape::TapeLock& lock, tape::Value& value) {
  if (auto* listener = active()) listener->evicted(lock, value);
}

void BudgetedStep::replayed(tape::TapeLock& lock, const tape::Op& op, tape::Value* consumed) {
  if (auto* listener = active()) listener->replayed(lock, op, consumed);
}

void BudgetedStep::dropped(tape::TapeLock& lock, tape::Value& value) {
  if (auto* listener = active()) listener->dropped(lock, value);
}

void BudgetedStep::plan_traced() {
  tracer_->finish();
  plan::PlanOptions options;
  options.bound = false;
  options.starts.push_back(tracer_->schedule());
  auto graph = std::move(tracer_->graph());
  tracer_.reset();
  ++traced_;
  const auto start = std::chrono::steady_clock::now();
  auto plan = plan::plan(graph, budget_, options);
  planning_ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  add(traced_kind_, std::make_shared<const StepPlan::State>(StepPlan::State{std::move(graph), std::move(plan)}));
}

void BudgetedStep::step_ended() {
  if (tracer_) return plan_traced();
  if (!running_) return;
  running_->step->step_ended();
  const auto& counters = running_->step->counters();
  if (counters.mismatched > 0 && !std::exchange(has_warned_, true))
    TORCH_WARN("[refrain::MemoryBudget] a step is not the one that was planned for: ", counters.first_mismatch,
               ". It runs unplanned; results are right, but it may take more memory or time. Said once.");
  if (may_trace_) running_ = nullptr;
}

MemoryBudgetStats BudgetedStep::stats() const {
  MemoryBudgetStats stats;
  stats.traced_steps = traced_;
  stats.planning_ms = planning_ms_;
  for (const auto& [number, kind] : kinds_) {
    const auto& counters = kind.step->counters();
    stats.planned_steps += counters.planned;
    stats.mismatched_steps += counters.mismatched;
    if (stats.first_mismatch.empty()) stats.first_mismatch = counters.first_mismatch;
  }
  return stats;
}

}  // namespace refrain::budget
