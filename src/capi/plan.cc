#include <ATen/ThreadLocalState.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/explain_plan.h"
#include "refrain/largest_batch.h"
#include "refrain/least_limit.h"
#include "refrain/memory_budget.h"
#include "refrain/refusal.h"
#include "refrain/torch_error.h"

using namespace refrain;

struct refrain_step_trace_t {
  StepTrace trace;
};
struct refrain_step_plan_t {
  StepPlan plan;
};
struct refrain_memory_budget_t {
  template <typename T>
  explicit refrain_memory_budget_t(const T& given) : budget(given) {}
  MemoryBudget budget;
};
struct refrain_least_limit_t {
  LeastLimit found;
};
struct refrain_largest_batch_t {
  Bytes limit;
  LargestBatchOptions options;
  at::ThreadLocalState caller;
  LargestBatch found;
};

namespace {

// Calls a step of the caller. The numbers of a refusal do not come through the caller's language: the last one of this
// thread is the one that ended the step. Without any, a `min_limit` of 0 lets `least_limit` go on with a bisection.
template <typename Step, typename... Args>
void call_step(Step step, void* context, Args... args) {
  const auto last = find_refusal();
  const int64_t before = last ? last->number : 0;
  const auto code = step(context, args...);
  if (code == REFRAIN_OK) return;
  if (code == REFRAIN_OUT_OF_MEMORY) {
    const auto refusal = find_refusal();
    if (!refusal || refusal->number == before)
      throw OutOfMemory("[refrain] the step met an OutOfMemory", OutOfMemoryReason::kMemoryCap, {});
    throw OutOfMemory(refusal->message, refusal->reason, refusal->numbers);
  }
  throw capi::CallbackFailed("[refrain] the step failed");
}

template <typename Step>
void require_step(Step step, const char* function) {
  if (!step) throw InvalidArgument(std::string("[") + function + "] `step` is null, expected a function");
}

std::function<void()> step_of(refrain_step_t step, void* context, const char* function) {
  require_step(step, function);
  return [step, context] { call_step(step, context); };
}

template <typename Step>
void explain_to(const Step& step, int64_t most_holders, char** text, char** json) {
  if (most_holders < 0)
    throw InvalidArgument("[refrain::explain] `most_holders` is " + std::to_string(most_holders) +
                          ", expected 0 or more");
  const auto explained = explain(step, static_cast<size_t>(most_holders));
  if (text) *text = capi::owned_text(explained.text);
  if (json) *json = capi::owned_text(explained.json);
}

template <typename T>
const T& element(const std::vector<T>& of, size_t index, const char* function) {
  if (index < of.size()) return of[index];
  throw InvalidArgument(std::string("[") + function + "] `index` is " + std::to_string(index) +
                        ", expected one below " + std::to_string(of.size()));
}

LeastLimitOptions least_limit_options(const refrain_least_limit_options_t& given) {
  LeastLimitOptions options;
  if (given.tolerance != 0.0) options.tolerance(given.tolerance);
  if (given.multiples) options.multiples(std::vector<double>(given.multiples, given.multiples + given.multiples_count));
  if (given.runs != 0) options.runs(given.runs);
  if (given.steps != 0) options.steps(given.steps);
  if (given.cap) options.cap(capi::cap_options_of(given.cap));
  return options;
}

}  // namespace

refrain_step_trace_t* refrain_profile(refrain_step_t step, void* context, int32_t runs, const char* model) {
  return capi::made([&] {
    return new refrain_step_trace_t{
        profile(step_of(step, context, "refrain_profile"), ProfileOptions().runs(runs).model(model ? model : ""))};
  });
}

refrain_step_trace_t* refrain_step_trace_load(const char* path) {
  return capi::made([&] {
    capi::require(path, "refrain_step_trace_load", "path");
    return new refrain_step_trace_t{StepTrace::load(path)};
  });
}

int32_t refrain_step_trace_save(const refrain_step_trace_t* trace, const char* path) {
  return capi::guarded([&] {
    capi::require(trace, "refrain_step_trace_save", "trace");
    capi::require(path, "refrain_step_trace_save", "path");
    trace->trace.save(path);
  });
}

int32_t refrain_step_trace_read(const refrain_step_trace_t* trace, int64_t* operators, int64_t* peak,
                                double* operators_ms) {
  return capi::guarded([&] {
    capi::require(trace, "refrain_step_trace_read", "trace");
    if (operators) *operators = trace->trace.operators();
    if (peak) *peak = trace->trace.peak();
    if (operators_ms) *operators_ms = trace->trace.operators_ms();
  });
}

int32_t refrain_step_trace_explain(const refrain_step_trace_t* trace, int64_t most_holders, char** text, char** json) {
  return capi::guarded([&] {
    capi::require(trace, "refrain_step_trace_explain", "trace");
    explain_to(trace->trace, most_holders, text, json);
  });
}

void refrain_step_trace_close(refrain_step_trace_t* trace) { delete trace; }

refrain_step_plan_t* refrain_plan_step(const refrain_step_trace_t* trace, const refrain_budget_t* budget,
                                       double time_limit_s) {
  return capi::made([&] {
    capi::require(trace, "refrain_plan_step", "trace");
    PlanOptions options;
    if (!(time_limit_s < 0.0)) options.time_limit(std::chrono::duration<double>(time_limit_s));
    return new refrain_step_plan_t{plan_step(trace->trace, capi::budget_of(budget, "refrain_plan_step"), options)};
  });
}

refrain_step_plan_t* refrain_step_plan_load(const char* path) {
  return capi::made([&] {
    capi::require(path, "refrain_step_plan_load", "path");
    return new refrain_step_plan_t{StepPlan::load(path)};
  });
}

int32_t refrain_step_plan_save(const refrain_step_plan_t* plan, const char* path) {
  return capi::guarded([&] {
    capi::require(plan, "refrain_step_plan_save", "plan");
    capi::require(path, "refrain_step_plan_save", "path");
    plan->plan.save(path);
  });
}

int32_t refrain_step_plan_read(const refrain_step_plan_t* plan, int32_t* fits, int64_t* peak, double* added_ms,
                               double* lower_bound_ms) {
  return capi::guarded([&] {
    capi::require(plan, "refrain_step_plan_read", "plan");
    if (fits) *fits = plan->plan.fits() ? 1 : 0;
    if (peak) *peak = plan->plan.peak();
    if (added_ms) *added_ms = plan->plan.added_ms();
    if (lower_bound_ms) *lower_bound_ms = plan->plan.lower_bound_ms();
  });
}

char* refrain_step_plan_report(const refrain_step_plan_t* plan, int32_t is_whole) {
  return capi::made([&] {
    capi::require(plan, "refrain_step_plan_report", "plan");
    return capi::owned_text(is_whole != 0 ? plan->plan.report() : plan->plan.brief());
  });
}

int32_t refrain_step_plan_explain(const refrain_step_plan_t* plan, int64_t most_holders, char** text, char** json) {
  return capi::guarded([&] {
    capi::require(plan, "refrain_step_plan_explain", "plan");
    explain_to(plan->plan, most_holders, text, json);
  });
}

void refrain_step_plan_close(refrain_step_plan_t* plan) { delete plan; }

refrain_memory_budget_t* refrain_memory_budget_open(const refrain_budget_t* budget) {
  return capi::made([&] { return new refrain_memory_budget_t(capi::budget_of(budget, "refrain_memory_budget_open")); });
}

refrain_memory_budget_t* refrain_memory_budget_open_plan(const refrain_step_plan_t* plan) {
  return capi::made([&] {
    capi::require(plan, "refrain_memory_budget_open_plan", "plan");
    return new refrain_memory_budget_t(plan->plan);
  });
}

int32_t refrain_memory_budget_stats(const refrain_memory_budget_t* budget, refrain_memory_budget_stats_t* stats,
                                    size_t size, char** first_mismatch) {
  return capi::guarded([&] {
    capi::require(budget, "refrain_memory_budget_stats", "budget");
    const auto now = budget->budget.stats();
    const refrain_memory_budget_stats_t found{.traced_steps = now.traced_steps,
                                              .planned_steps = now.planned_steps,
                                              .mismatched_steps = now.mismatched_steps,
                                              .planning_ms = now.planning_ms,
                                              .replans = now.replans,
                                              .unrecorded_steps = now.unrecorded_steps};
    capi::fill(stats, size, &found, sizeof(found), "refrain_memory_budget_stats");
    if (first_mismatch) *first_mismatch = capi::owned_text(now.first_mismatch);
  });
}

char* refrain_memory_budget_report(const refrain_memory_budget_t* budget) {
  return capi::made([&] {
    capi::require(budget, "refrain_memory_budget_report", "budget");
    return capi::owned_text(budget->budget.report());
  });
}

void refrain_memory_budget_close(refrain_memory_budget_t* budget) { delete budget; }

refrain_least_limit_t* refrain_least_limit(refrain_step_t step, void* context,
                                           const refrain_least_limit_options_t* options) {
  return capi::made([&] {
    return new refrain_least_limit_t{least_limit(step_of(step, context, "refrain_least_limit"),
                                                 options ? least_limit_options(*options) : LeastLimitOptions())};
  });
}

int32_t refrain_least_limit_read(const refrain_least_limit_t* found, refrain_least_limit_values_t* values,
                                 size_t size) {
  return capi::guarded([&] {
    capi::require(found, "refrain_least_limit_read", "found");
    const auto& least = found->found;
    const refrain_least_limit_values_t read{.limit = least.limit,
                                            .refused = least.refused,
                                            .level = least.level,
                                            .peak = least.peak,
                                            .baseline_ms = least.baseline_ms,
                                            .steps = least.steps};
    capi::fill(values, size, &read, sizeof(read), "refrain_least_limit_read");
  });
}

size_t refrain_least_limit_costs(const refrain_least_limit_t* found) { return found ? found->found.costs.size() : 0; }

int32_t refrain_least_limit_cost(const refrain_least_limit_t* found, size_t index, refrain_limit_cost_t* cost,
                                 size_t size) {
  return capi::guarded([&] {
    capi::require(found, "refrain_least_limit_cost", "found");
    const auto& one = element(found->found.costs, index, "refrain_least_limit_cost");
    const refrain_limit_cost_t read{.limit = one.limit,
                                    .peak = one.peak,
                                    .ms = one.ms,
                                    .ratio = one.ratio,
                                    .recomputes = one.recomputes,
                                    .evictions = one.evictions,
                                    .holds = one.holds ? 1 : 0};
    capi::fill(cost, size, &read, sizeof(read), "refrain_least_limit_cost");
  });
}

char* refrain_least_limit_report(const refrain_least_limit_t* found) {
  return capi::made([&] {
    capi::require(found, "refrain_least_limit_report", "found");
    return capi::owned_text(found->found.report());
  });
}

void refrain_least_limit_close(refrain_least_limit_t* found) { delete found; }

refrain_largest_batch_t* refrain_largest_batch_open(int64_t limit, int64_t min_batch, int64_t max_batch) {
  return capi::made([&] {
    return new refrain_largest_batch_t{limit, LargestBatchOptions().min_batch(min_batch).max_batch(max_batch), {}, {}};
  });
}

int32_t refrain_largest_batch_run(refrain_largest_batch_t* search, refrain_batch_step_t step, void* context) {
  return capi::guarded([&] {
    capi::require(search, "refrain_largest_batch_run", "search");
    require_step(step, "refrain_largest_batch_run");
    const at::ThreadLocalStateGuard state(search->caller);  // `largest_batch` hands it on to its threads
    search->found =
        largest_batch([&](int64_t batch) { call_step(step, context, batch); }, search->limit, search->options);
  });
}

int32_t refrain_largest_batch_read(const refrain_largest_batch_t* search, refrain_largest_batch_values_t* values,
                                   size_t size) {
  return capi::guarded([&] {
    capi::require(search, "refrain_largest_batch_read", "search");
    const auto& found = search->found;
    const refrain_largest_batch_values_t read{.batch = found.batch,
                                              .next_batch = found.next_batch,
                                              .peak = found.peak,
                                              .next_peak = found.next_peak,
                                              .resident_peak = found.resident_peak};
    capi::fill(values, size, &read, sizeof(read), "refrain_largest_batch_read");
  });
}

size_t refrain_largest_batch_trials(const refrain_largest_batch_t* search) {
  return search ? search->found.trials.size() : 0;
}

int32_t refrain_largest_batch_trial(const refrain_largest_batch_t* search, size_t index, refrain_batch_trial_t* trial,
                                    size_t size) {
  return capi::guarded([&] {
    capi::require(search, "refrain_largest_batch_trial", "search");
    const auto& one = element(search->found.trials, index, "refrain_largest_batch_trial");
    const refrain_batch_trial_t read{
        .batch = one.batch, .fits = one.fits ? 1 : 0, .peak = one.peak, .resident_peak = one.resident_peak};
    capi::fill(trial, size, &read, sizeof(read), "refrain_largest_batch_trial");
  });
}

void refrain_largest_batch_close(refrain_largest_batch_t* search) { delete search; }
