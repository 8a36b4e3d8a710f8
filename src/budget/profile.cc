#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>
#include <variant>

#include "base/atomic_file.h"
#include "budget/step_state.h"
#include "evict/evict.h"
#include "evict/open_cap.h"
#include "graph/json.h"
#include "plan/plan_file.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "trace/step_tracer.h"

namespace refrain {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!(file && content << file.rdbuf()))
    throw InvalidArgument(fmt::format("cannot read {}: expected a file with a trace or a plan; check the path", path));
  return std::move(content).str();
}

template <typename T>
T parsed(std::variant<T, FormatError>&& read, const std::string& path) {
  if (auto* error = std::get_if<FormatError>(&read)) throw FormatError(fmt::format("{}: {}", path, error->what()));
  return std::get<T>(std::move(read));
}

/// A cap without a limit: everything is recorded, nothing is evicted.
class OpenCap {
 public:
  OpenCap() { tape::open_cap(true); }
  ~OpenCap() { tape::close_cap(true); }
  OpenCap(const OpenCap&) = delete;
  OpenCap& operator=(const OpenCap&) = delete;
};

}  // namespace

StepTrace StepTrace::load(const std::string& path) {
  auto graph = parsed(graph::read_graph(content_of(path)), path);
  auto schedule = graph::empty_schedule(graph);
  return StepTrace(std::make_shared<const State>(State{std::move(graph), std::move(schedule)}));
}

void StepTrace::save(const std::string& path) const { write_file_atomically(path, graph::to_json(state_->graph)); }

int64_t StepTrace::operators() const { return static_cast<int64_t>(state_->graph.ops.size()); }

Bytes StepTrace::peak() const { return graph::plain_peak(state_->graph); }

double StepTrace::operators_ms() const { return static_cast<double>(graph::operators_ns(state_->graph)) / 1e6; }

StepTrace profile(const std::function<void()>& step, const ProfileOptions& options) {
  if (options.runs() < 1)
    throw InvalidArgument(fmt::format("[refrain::profile] `runs` is {}, expected at least 1", options.runs()));
  install_memory_tracking();
  const OpenCap cap;
  for (int i = 1; i < options.runs(); ++i) step();
  tape::StepTracer tracer;
  {
    const tape::ListenerScope listening(tracer);
    step();
    tracer.finish();
  }
  tracer.graph().model = options.model();
  return StepTrace(std::make_shared<const StepTrace::State>(
      StepTrace::State{std::move(tracer.graph()), std::move(tracer.schedule())}));
}

StepPlan StepPlan::load(const std::string& path) {
  auto read = parsed(plan::read_plan(content_of(path)), path);
  return StepPlan(std::make_shared<const State>(State{std::move(read.graph), std::move(read.plan)}));
}

void StepPlan::save(const std::string& path) const {
  write_file_atomically(path, plan::to_json(state_->graph, state_->plan));
}

bool StepPlan::fits() const { return state_->plan.is_feasible; }
Bytes StepPlan::peak() const { return state_->plan.peak; }
double StepPlan::added_ms() const { return static_cast<double>(state_->plan.added_ns) / 1e6; }
double StepPlan::lower_bound_ms() const { return static_cast<double>(state_->plan.bound_ns) / 1e6; }
std::string StepPlan::brief() const { return state_->plan.brief(); }
std::string StepPlan::report() const { return state_->plan.report(); }

void budget::check_trace(const graph::Graph& graph, const char* who) {
  if (const auto defect = graph::find_defect(graph); !defect.empty())
    throw InvalidArgument(fmt::format(
        "[refrain::{}] cannot plan for a step whose trace has a defect: {}; expected none. The trace is wrong, not the step: report it with the step. Until then use "
        "a MemoryCap, or if the step has checkpoint regions, leave either them or the budget out.",
        who, defect));
}

namespace {

plan::Budget planners(Budget budget) {
  if (budget.kind() == Budget::Kind::kBytes) return plan::Budget::of_bytes(budget.bytes());
  if (budget.kind() == Budget::Kind::kFraction) return plan::Budget::of_fraction(budget.fraction());
  throw InvalidArgument(
      "[refrain::plan_step] found a budget of resident bytes, expected Budget::bytes or Budget::fraction; MemoryBudget plans for resident bytes");
}

}  // namespace

StepPlan plan_step(const StepTrace& trace, Budget budget, const PlanOptions& options) {
  const double seconds = options.time_limit().count();
  if (!(seconds >= 0.0))
    throw InvalidArgument(fmt::format("[refrain::plan_step] `time_limit` is {} s, expected 0 or more", seconds));
  const auto& graph = trace.state().graph;
  budget::check_trace(graph, "plan_step");
  plan::PlanOptions search;
  search.time_limit_s = seconds;
  search.starts.push_back(trace.state().recorded);
  return StepPlan(
      std::make_shared<const StepPlan::State>(StepPlan::State{graph, plan::plan(graph, planners(budget), search)}));
}

StepPlan plan_from_cap_decisions(const StepTrace& trace) {
  const auto& [graph, schedule] = trace.state();
  const auto simulation = graph::simulate(graph, schedule);
  if (!simulation.error.empty())
    throw InvalidArgument("[refrain::plan_from_cap_decisions] the cap's decisions cannot be repeated as a plan: " +
                          simulation.error);
  plan::Plan plan;
  plan.is_feasible = true;
  plan.schedule = schedule;
  plan.solver = "cap";
  plan.peak = plan.budget_bytes = simulation.peak;
  plan.added_ns = simulation.added_ns;
  plan.recomputed_ops = simulation.recomputed_ops;
  plan.plain_peak = graph::plain_peak(graph);
  plan.step_ns = graph::operators_ns(graph);
  return StepPlan(std::make_shared<const StepPlan::State>(StepPlan::State{graph, std::move(plan)}));
}

}  // namespace refrain
