#include "budget/budgeted_step.h"

#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "graph/json.h"
#include "intercept/for_each_tensor.h"
#include "memory/block.h"
#include "memory/stack.h"
#include "memory/tensor_heap.h"
#include "refrain/memory.h"

namespace refrain::budget {
namespace {

/// Hash of the sizes of all tensors that it reads, with its name; none if it reads no tensor.
std::optional<uint64_t> sizes_of(const tape::OpTraits& traits, const torch::jit::Stack& stack) {
  size_t key = std::hash<std::string>()(traits.name());
  bool reads = false;
  tape::for_each_tensor(stack.data() + (stack.size() - traits.num_args), traits.num_args,
                        [&](const at::Tensor& tensor, size_t, int32_t) {
                          if (!tensor.defined() || !tape::has_plain_storage(tensor)) return;
                          reads = true;
                          for (const auto size : tensor.sizes())
                            key = c10::hash_combine(key, static_cast<size_t>(size));
                        });
  return reads ? std::optional<uint64_t>(key) : std::nullopt;
}

/// Rounds its values up to the heap's pages.
graph::Graph as_heap_rounds(graph::Graph graph) {
  for (auto& value : graph.values) value.bytes = TensorHeap::rounded(value.bytes + static_cast<Bytes>(sizeof(Block)));
  return graph;
}

}  // namespace

BudgetedStep::BudgetedStep(const StepPlan& plan) : budget_(), may_trace_(false) {
  add(std::shared_ptr<const StepPlan::State>(std::make_shared<StepPlan>(plan), &plan.state()));
  running_ = last_;
}

void BudgetedStep::Kind::set(std::shared_ptr<const StepPlan::State> planned) {
  step = std::make_unique<tape::PlannedStep>(planned->graph, planned->plan.schedule);
  state = std::move(planned);
  plan = &state->plan;
  fits_plainly = plan->recomputed_ops == 0 && plan->plain_peak <= plan->budget_bytes;
}

int BudgetedStep::add(std::shared_ptr<const StepPlan::State> state) {
  auto made = std::make_unique<Kind>();
  made->fingerprint = graph::fingerprint(state->graph);
  made->level = level_;
  made->set(std::move(state));
  last_ = made.get();
  kinds_.push_back(std::move(made));
  return static_cast<int>(kinds_.size()) - 1;
}

bool BudgetedStep::may_rest() const {
  // a fraction is of each kind's own peak, and other kinds may have something to do
  const bool is_of_level = budget_.fraction < 0.0 || budget_.fraction >= 1.0;
  return is_of_level && !of_process_ && (planned_ > 0 || !may_trace_) &&
         std::all_of(kinds_.begin(), kinds_.end(), [](const auto& kind) { return kind->fits_plainly; });
}

tape::StepListener* BudgetedStep::active() const {
  if (skips_) return nullptr;
  if (tracer_) return tracer_.get();
  return running_ ? running_->step.get() : nullptr;
}

int BudgetedStep::guess() const {
  if (const auto known = known_.find(situation_); known != known_.end()) return known->second;
  const auto last = last_of_sizes_.find(situation_.sizes);
  return last == last_of_sizes_.end() ? kToTrace : last->second;
}

void BudgetedStep::begin_step(const tape::OpTraits& traits, const torch::jit::Stack& stack) {
  running_ = nullptr;
  if (!first_operator_.empty() && traits.name() != first_operator_) return;
  const auto sizes = sizes_of(traits, stack);
  if (!sizes) return;
  situation_ = {*sizes, before_, row_};
  has_begun_ = true;
  level_ = tracking_allocator().current();
  const int kind = guess();
  if (kind >= 0) {
    running_ = last_ = kinds_[static_cast<size_t>(kind)].get();
    plan_for_level(*running_);
  } else if (kinds_.size() < kMostKinds) {
    first_operator_ = traits.name();
    tracer_ = std::make_unique<tape::StepTracer>();
  }
}

plan::Budget BudgetedStep::budget() const {
  return of_process_ ? plan::Budget::of_bytes(resident_allocator().room_for_tensors()) : budget_;
}

plan::Plan BudgetedStep::timed_plan(const graph::Graph& graph, const plan::PlanOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  check_trace(graph, "MemoryBudget");
  // A search takes tens of MiB from `malloc`: in the place of the step's free pages, not beside them, and back to the system when it is done.
  release_free_memory();
  auto plan = of_process_ ? plan::plan(as_heap_rounds(graph), budget(), options) : plan::plan(graph, budget(), options);
  release_free_memory();
  planning_ms_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return plan;
}

void BudgetedStep::plan_for_level(Kind& kind) {
  const int64_t rise = level_ - kind.level;
  if (budget_.fraction >= 0.0 || rise < budget().bytes / kLeastRise || kind.replans == kMostReplans) return;
  auto graph = kind.state->graph;
  for (auto& op : graph.ops) {
    op.outside += rise;
    op.gap += rise;
  }
  graph.end_outside += rise;
  graph.end_gap += rise;
  plan::PlanOptions options;
  options.bound = false;
  options.starts.push_back(kind.plan->schedule);
  auto plan = timed_plan(graph, options);
  kind.level = level_;
  ++kind.replans;
  ++replans_;
  kind.set(std::make_shared<const StepPlan::State>(StepPlan::State{std::move(graph), std::move(plan)}));
}

void BudgetedStep::before(const tape::OpTraits& traits, const torch::jit::Stack& stack) {
  if (skips_) return;
  if (may_trace_ && !tracer_ && !(running_ && running_->step->is_under_way())) begin_step(traits, stack);
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

void BudgetedStep::scope_changed() {
  if (tracer_) tracer_->scope_changed();
}

void BudgetedStep::dropped(tape::TapeLock& lock, tape::Value& value) {
  if (auto* listener = active()) listener->dropped(lock, value);
}

void BudgetedStep::plan_traced() {
  tracer_->finish();
  auto graph = std::move(tracer_->graph());
  plan::PlanOptions options;
  options.bound = false;
  options.starts.push_back(std::move(tracer_->schedule()));
  tracer_.reset();
  ++traced_;
  const auto fingerprint = graph::fingerprint(graph);
  const auto same =
      std::find_if(kinds_.begin(), kinds_.end(), [&](const auto& kind) { return kind->fingerprint == fingerprint; });
  if (same != kinds_.end()) {
    last_ = same->get();
    return note_end(static_cast<int>(same - kinds_.begin()));
  }
  auto plan = timed_plan(graph, options);
  note_end(add(std::make_shared<const StepPlan::State>(StepPlan::State{std::move(graph), std::move(plan)})));
}

void BudgetedStep::note_end(int kind) {
  if (kind >= 0 && guess() != kind) known_[situation_] = kind;
  if (kind >= 0) last_of_sizes_[situation_.sizes] = kind;
  // not of steps of no kind: what diverged is traced again when it is in the same situation
  row_ = kind == before_ && kind != kNoKind ? std::min(row_ + 1, kLongestRow) : 1;
  before_ = kind;
}

void BudgetedStep::note_mismatch(const Kind* kind) {
  ++mismatched_;
  if (first_mismatch_.empty() && kind) first_mismatch_ = kind->step->counters().first_mismatch;
  if (first_mismatch_.empty()) first_mismatch_ = "it ended before the plan's first eviction";
  if (!std::exchange(has_warned_, true)) {
    TORCH_WARN("[refrain::MemoryBudget] step diverged from the plan: ", first_mismatch_,
               "; continuing unplanned: results are right, peak and time may be higher (shown once)");
  }
}

void BudgetedStep::step_ended() {
  if (skips_.exchange(false)) return;
  if (tape::Tape::get().rests.load()) {
    ++unrecorded_;
    return;
  }
  const bool has_begun = std::exchange(has_begun_, false);
  if (tracer_) return plan_traced();
  if (may_trace_ && !has_begun) {
    // the operator that steps begin with was one of initialization, and does not run again
    if (planned_ == 0) first_operator_.clear();
    return;
  }
  auto* const kind = running_;
  const auto planned_before = kind ? kind->step->counters().planned : 0;
  if (kind) kind->step->step_ended();
  const bool is_planned = kind && kind->step->counters().planned > planned_before;
  if (is_planned)
    ++planned_;
  else
    note_mismatch(kind);
  if (!may_trace_) return;
  running_ = nullptr;
  if (!is_planned) known_[situation_] = kToTrace;
  const auto is_this = [&](const auto& known) { return known.get() == kind; };
  note_end(is_planned ? static_cast<int>(std::find_if(kinds_.begin(), kinds_.end(), is_this) - kinds_.begin())
                      : kNoKind);
}

MemoryBudgetStats BudgetedStep::stats() const {
  return {.traced_steps = traced_,
          .planned_steps = planned_,
          .mismatched_steps = mismatched_,
          .first_mismatch = first_mismatch_,
          .planning_ms = planning_ms_,
          .replans = replans_,
          .unrecorded_steps = unrecorded_};
}

}  // namespace refrain::budget
