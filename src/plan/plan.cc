#include "plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "plan/best.h"
#include "plan/blocks.h"
#include "plan/bound.h"
#include "plan/effort.h"
#include "plan/exhaustive.h"
#include "plan/explore.h"
#include "plan/frontier.h"
#include "plan/search.h"
#include "plan/stage_program.h"
#include "plan/strategies.h"
#include "refrain/error.h"

namespace refrain::plan {
namespace {

constexpr size_t kExactOps = 40;     // up to which integer programs are quick
constexpr size_t kPatientOps = 150;  // up to which they are worth a try, if so many seconds are given:
constexpr double kPatientSeconds = 5;
constexpr size_t kLpOps = 400;         // likewise for linear ones, if no time is given
constexpr size_t kExhaustiveOps = 24;  // up to which all there is can be searched, with luck

constexpr double kStepsPerSecond = 3.5e7;  // on a slow machine, so that the clock seldom strikes
constexpr double kLeastPart = 0.35;        // of all work: for the least peak

/// That no clock strikes on a machine that is three times as slow.
double default_seconds(const graph::Graph& graph, std::optional<double> asked) {
  return asked ? *asked : std::max(3.0, static_cast<double>(graph.ops.size()) * 3e-4);
}

/// 0.8 s of a machine at rest from 200 to 5,000 operators, 10 s for 50,000.
std::atomic<int64_t> most_default_steps{std::numeric_limits<int64_t>::max()};

int64_t default_steps(const graph::Graph& graph) {
  const auto ops = static_cast<int64_t>(graph.ops.size());
  const auto steps = std::max(std::min<int64_t>(64'000'000, 300'000 * ops),
                              std::min<int64_t>(12'000 * ops, 200'000'000 + 2'000 * ops));
  return std::min(steps, most_default_steps.load(std::memory_order_relaxed));
}

/// Of bounds.
double bound_seconds(const graph::Graph& graph, std::optional<double> asked) {
  return asked ? *asked : std::max(1.0, static_cast<double>(graph.ops.size()) / 8000.0);
}

}  // namespace

int64_t limit_default_steps(int64_t most) { return most_default_steps.exchange(most); }

struct Planner::Impl {
  Impl(const graph::Graph& graph_in, PlanOptions options_in)
      : graph(graph_in),
        options(std::move(options_in)),
        plain(graph::simulate(graph, graph::empty_schedule(graph))),
        exact_problem(graph, 0),
        problem(graph, tiny_bytes()),
        state(problem),
        frontier(most_points()) {
    step_ns = graph::operators_ns(graph);
    floor = refrain::plan::floor_bytes(exact_problem);
    settings = {options.seed, options.saved_ops, {}, floor};
    frontier.add(state, "keep_all");
    for (const auto& start : options.starts) add_start(start);
  }

  /// All smaller values together are 1/1,000 of the plain peak.
  int64_t tiny_bytes() const {
    if (options.tiny_bytes >= 0) return options.tiny_bytes;
    std::vector<int64_t> sizes;
    for (const graph::Value& value : graph.values)
      if (value.evictable) sizes.push_back(value.bytes);
    std::sort(sizes.begin(), sizes.end());
    int64_t sum = 0;
    for (const int64_t size : sizes)
      if ((sum += size) > plain.peak / 1000) return size;
    return 0;
  }

  /// Of the frontier: about 64 MiB.
  size_t most_points() const {
    return std::clamp<size_t>((size_t{64} << 20) / (16 * (graph.values.size() + 1)), 64, 1024);
  }

  // ---- what was found

  void add_start(const graph::Schedule& schedule) {
    const auto run = graph::simulate(graph, schedule);
    if (!run.error.empty()) return;
    if (state.assign(State::stays_of(problem, schedule))) frontier.add(state, "start");
    frontier.add({run.peak, run.added_ns, "start", {}, schedule});
    settings.starts.push_back(schedule);
  }

  // ---- solvers

  using Run = bool (*)(State&, int64_t, Effort&);

  bool run(Solver solver, int64_t budget, Effort& effort) {
    Search search(state, effort);
    switch (solver) {
      case Solver::kKeepAll:
        state.assign(keep_all(problem));
        break;
      case Solver::kSqrtN:
        solve_sqrt_n(state, budget, effort);
        break;
      case Solver::kPerBlock:
        solve_per_block(state, budget, effort);
        break;
      case Solver::kSelective:
        solve_selective(state, budget, effort, options.saved_ops);
        break;
      case Solver::kMinCut:
        solve_min_cut(state, budget, effort);
        break;
      case Solver::kKnapsack:
        solve_knapsack(state, budget, effort);
        break;
      case Solver::kXla:
        solve_xla(state, budget, effort);
        break;
      case Solver::kChain:
        solve_chain(state, budget, effort);
        break;
      case Solver::kPricedCut:
        solve_priced_cut(state, budget, effort);
        break;
      case Solver::kExact:
        solve_exact(budget, effort);
        break;
      case Solver::kLpRounding:
        solve_lp_rounding(budget, effort);
        break;
      case Solver::kLocalSearch:
        state.assign(keep_all(problem));
        if (search.descend(budget)) {
          search.refill(budget);
          search.improve(budget, options.seed, improve_rounds(problem));
        }
        break;
      default:
        state.assign(keep_all(problem));
        search.descend(budget);
        break;
    }
    return state.peak() <= budget;
  }

  /// Small graphs: all there is. @return whether that is decided, and how.
  std::optional<Bound> search_all(int64_t budget, Effort& effort) {
    if (graph.ops.size() > kExhaustiveOps) return {};
    auto result = search_exhaustively(graph, budget, 300'000, effort);
    if (result.status == ExhaustiveResult::Status::kLimit) return {};
    Bound bound{result.added_ns, "exact", result.status == ExhaustiveResult::Status::kInfeasible};
    if (bound.is_infeasible) return bound;
    const auto run = graph::simulate(graph, result.schedule);
    if (state.assign(State::stays_of(problem, result.schedule))) frontier.add(state, "exact");
    frontier.add({run.peak, run.added_ns, "exact", {}, std::move(result.schedule)});
    return bound;
  }

  /// The integer program knows nothing of bytes in use while operators run again: what it says may need further drops.
  void solve_exact(int64_t budget, Effort& effort) {
    if (const auto exact = search_all(budget, effort)) {
      program_bound = *exact;
      return;
    }
    const auto result = solve_program(budget, effort);
    if (result.stays.empty() || !state.assign(result.stays)) {
      state.assign(keep_all(problem));
      return;
    }
    Search search(state, effort);
    if (state.peak() > budget) search.descend(budget);
    if (state.peak() <= budget) search.refill(budget);
  }

  /// Larger graphs have fewer boundaries than places, so that the program can be solved at all.
  void solve_lp_rounding(int64_t budget, Effort& effort) {
    constexpr size_t kMostColumns = 30'000;
    const auto places = static_cast<size_t>(exact_problem.ends) + 1;
    const size_t count = std::max<size_t>(4, kMostColumns / places);
    std::vector<OpId> boundaries = count < places ? std::vector<OpId>() : all_places();
    for (size_t k = 1; k <= count && count < places; ++k)
      boundaries.push_back(static_cast<OpId>(k * places / (count + 1)));
    Best best(state, budget, effort);
    best.attempt(keep_all(problem), false);
    for (const int percent : {100, 95, 90, 80, 70, 50}) {
      if (effort.seconds_left() <= 0.0) break;
      const StageProgram program(exact_problem, budget / 100 * percent, boundaries);
      const auto result = program.solve(effort.seconds_left(), true);
      if (result.status == LinearProgram::Status::kInfeasible) break;
      if (!result.rounded.empty()) best.attempt(result.rounded, false);
    }
    best.finish();
  }

  std::vector<OpId> all_places() const {
    std::vector<OpId> places(static_cast<size_t>(exact_problem.ends) + 1);
    std::iota(places.begin(), places.end(), 0);
    return places;
  }

  /// With all places as boundaries.
  StageProgram::Result solve_program(int64_t budget, const Effort& effort) {
    auto result = StageProgram(exact_problem, budget, all_places()).solve(std::max(0.01, effort.seconds_left()), false);
    if (result.status == LinearProgram::Status::kInfeasible) program_bound = {0, "exact", true};
    if (result.bound_ns > 0) program_bound = {result.bound_ns, "integer", false};
    return result;
  }

  // ---- the whole trade-off, for `Solver::kAuto`

  int64_t least(Plan* plan) {
    if (least_peak > 0) return least_peak;
    Effort effort(static_cast<int64_t>(static_cast<double>(steps()) * kLeastPart), seconds() * kLeastPart);
    Exploration(state, frontier, settings, measure_into(plan, 0, effort)).descend_to_least(effort);
    timed_out = timed_out || effort.timed_out();
    steps_done = effort.spent();
    seconds_done = seconds() * kLeastPart - effort.seconds_left();
    return least_peak = frontier.points().front().peak;
  }

  void explore(Plan& plan) {
    if (is_explored) return;
    is_explored = true;
    least(&plan);
    Effort effort(steps() - steps_done, seconds() - seconds_done);
    const auto measure = measure_into(&plan, plan.budget_bytes, effort);
    if (graph.ops.size() <= kExhaustiveOps) measure("exact", [&] { search_all_budgets(effort); });
    if (!is_decided) Exploration(state, frontier, settings, measure).run(effort);
    timed_out = timed_out || effort.timed_out();
  }

  /// From the plain peak down: what is best for a budget is so for all smaller ones that its peak fits.
  void search_all_budgets(Effort& effort) {
    Effort part(effort.left() / 2, effort.seconds_left() / 2);
    bool all = true;
    for (int64_t budget = plain.peak - 1; budget >= floor && !part.is_over();) {
      const auto bound = search_all(budget, part);
      if (bound && bound->is_infeasible) {
        decided.push_back({0, budget, *bound});
        is_decided = all;
        break;
      }
      all = all && bound;
      int64_t next = floor + (budget - floor) / 2;
      if (bound) {
        const int64_t peak = frontier.best(budget)->peak;
        decided.push_back({peak, budget, *bound});
        next = peak - 1;
      }
      if (next == budget) break;
      budget = next;
    }
    effort.spend(part.spent());
  }

  /// Phases go into `plan`, each with the best that is known for the budget after it.
  Exploration::Measure measure_into(Plan* plan, int64_t budget, Effort& effort) {
    return [this, plan, budget, &effort](const std::string& name, const std::function<void()>& work) {
      Plan unused;
      measure(plan != nullptr ? *plan : unused, name, budget, effort, work);
    };
  }

  int64_t steps() const {
    if (options.step_limit > 0) return options.step_limit;
    return options.time_limit_s ? static_cast<int64_t>(seconds() * kStepsPerSecond) : default_steps(graph);
  }

  void measure(Plan& plan, const std::string& name, int64_t budget, Effort& effort, const std::function<void()>& work) {
    const auto begin = Effort::Clock::now();
    const int64_t before = effort.spent();
    work();
    Phase phase;
    phase.name = name;
    phase.seconds = std::chrono::duration<double>(Effort::Clock::now() - begin).count();
    phase.steps = effort.spent() - before;
    const Point* best = frontier.best(budget);
    phase.fits = best != nullptr;
    if (best == nullptr) best = &frontier.points().front();
    phase.peak = best->peak;
    phase.added_ns = best->added_ns;
    plan.phases.push_back(std::move(phase));
  }

  /// Integer programs end by the clock, so not where steps are limited.
  size_t most_exact_ops() const {
    return options.time_limit_s.value_or(0.0) >= kPatientSeconds && options.step_limit == 0 ? kPatientOps : kExactOps;
  }

  double seconds() const { return default_seconds(graph, options.time_limit_s); }

  Plan plan(Budget budget) {
    Plan plan;
    plan.plain_peak = plain.peak;
    plan.step_ns = step_ns;
    plan.floor_bytes = floor;
    plan.budget_bytes = to_bytes(budget, plan);
    program_bound = {};
    solve(plan);
    plan.timed_out = timed_out;
    finish(plan);
    if (options.bound) prove(plan);
    return plan;
  }

  void solve(Plan& plan) {
    const int64_t bytes = plan.budget_bytes;
    if (options.solver != Solver::kAuto) return solve_alone(plan);
    const Point* known = frontier.best(bytes);
    if (known != nullptr && known->added_ns == 0) return;
    if (floor > bytes)
      least(&plan);
    else
      explore(plan);
    for (const Decided& range : decided)
      if (range.from <= bytes && bytes <= range.to) program_bound = range.bound;
    if (frontier.best(bytes) == nullptr) plan.least_bytes = frontier.points().front().peak;
  }

  void solve_alone(Plan& plan) {
    frontier = Frontier(most_points());
    const std::string name(solver_name(options.solver));
    Effort effort(steps(), seconds());
    measure(plan, name, plan.budget_bytes, effort, [&] {
      run(options.solver, plan.budget_bytes, effort);
      frontier.add(state, name);
    });
    timed_out = effort.timed_out();
  }

  int64_t to_bytes(Budget budget, Plan& plan) {
    if (budget.fraction < 0.0) {
      if (budget.bytes < 0)
        throw InvalidArgument(fmt::format("budget: found {} bytes; expected 0 or more", budget.bytes));
      return budget.bytes;
    }
    if (!(budget.fraction <= 1.0))
      throw InvalidArgument(fmt::format("budget: found the fraction {}; expected 0 to 1", budget.fraction));
    const int64_t low = least(&plan);
    return low + static_cast<int64_t>(budget.fraction * static_cast<double>(plain.peak - low));
  }

  void finish(Plan& plan) {
    const Point* point = frontier.best(plan.budget_bytes);
    if (point == nullptr) point = &frontier.points().front();
    plan.solver = point->solver;
    if (point->schedule) {
      plan.schedule = *point->schedule;
    } else {
      state.assign(point->stays.unpack());
      plan.schedule = state.schedule();
    }
    const auto run = graph::simulate(graph, plan.schedule);
    if (!run.error.empty()) throw InternalError("[refrain::plan] a plan that cannot run was made: " + run.error);
    plan.peak = run.peak;
    plan.added_ns = run.added_ns;
    plan.recomputed_ops = run.recomputed_ops;
    plan.is_feasible = plan.peak <= plan.budget_bytes;
  }

  void prove(Plan& plan) {
    if (plan.is_feasible && plan.added_ns == 0) {
      plan.proof = "exact";
      return;
    }
    const double most_seconds = bound_seconds(graph, options.time_limit_s);
    Effort effort(static_cast<int64_t>(most_seconds * kStepsPerSecond), most_seconds);
    if (!plan.is_feasible) {
      if (floor <= plan.budget_bytes && !program_bound.is_infeasible && graph.ops.size() <= most_exact_ops())
        solve_program(plan.budget_bytes, effort);
      plan.proof = floor > plan.budget_bytes ? "floor" : program_bound.is_infeasible ? program_bound.proof : "none";
      return;
    }
    Bound best = program_bound;
    const auto consider = [&](const char* name, const std::function<Bound()>& work) {
      if (best.added_ns >= plan.added_ns || effort.is_over()) return;
      const auto begin = Effort::Clock::now();
      const int64_t before = effort.spent();
      const Bound bound = work();
      plan.phases.push_back({name, std::chrono::duration<double>(Effort::Clock::now() - begin).count(),
                             effort.spent() - before, true, plan.peak, bound.added_ns});
      if (bound.added_ns > best.added_ns) best = bound;
    };
    consider("bound by cuts", [&] { return cut_bound(exact_problem, plan.budget_bytes, effort); });
    if (graph.ops.size() <= kLpOps || options.time_limit_s)
      consider("bound by lp",
               [&] { return lp_bound(exact_problem, plan.budget_bytes, std::max(0.01, effort.seconds_left() / 2)); });
    if (graph.ops.size() <= kLpOps || options.time_limit_s)
      consider("bound by integer", [&] {
        return integer_bound(exact_problem, plan.budget_bytes, std::max(0.01, effort.seconds_left()), plan.added_ns);
      });
    if (graph.ops.size() <= most_exact_ops())
      consider("bound by program", [&] {
        solve_program(plan.budget_bytes, effort);
        return program_bound;
      });
    plan.bound_ns = best.added_ns;
    plan.proof = plan.bound_ns == plan.added_ns ? "exact" : best.proof;
  }

  const graph::Graph& graph;
  PlanOptions options;
  graph::Simulation plain;
  Problem exact_problem, problem;
  State state;
  Frontier frontier;
  Exploration::Settings settings;
  int64_t step_ns = 0, floor = 0;
  int64_t least_peak = 0, steps_done = 0;
  double seconds_done = 0.0;
  bool is_explored = false, is_decided = false, timed_out = false;
  struct Decided {
    int64_t from, to;  // budgets
    Bound bound;
  };
  std::vector<Decided> decided;
  Bound program_bound;  // of the last integer program, or of all there is
};

namespace {

const graph::Graph& checked(const graph::Graph& graph, const PlanOptions& options) {
  if (const auto defect = graph::find_defect(graph); !defect.empty())
    throw InvalidArgument("plan: the graph has a defect: " + defect);
  if (!(options.time_limit_s.value_or(0.0) >= 0.0) || options.step_limit < 0)
    throw InvalidArgument(fmt::format("plan: found time_limit_s {} and step_limit {}; expected 0 or more",
                                      options.time_limit_s.value_or(0.0), options.step_limit));
  if ((options.solver == Solver::kExact && graph.ops.size() > kExhaustiveOps) || options.solver == Solver::kLpRounding)
    if (const auto why = why_no_linear_programs(); !why.empty())
      throw InvalidArgument(fmt::format("solver '{}': {}", solver_name(options.solver), why));
  return graph;
}

}  // namespace

Planner::Planner(const graph::Graph& graph, PlanOptions options)
    : impl_(std::make_unique<Impl>(checked(graph, options), options)) {}
Planner::~Planner() = default;
Planner::Planner(Planner&&) noexcept = default;

Plan Planner::plan(Budget budget) { return impl_->plan(budget); }
int64_t Planner::plain_peak() const { return impl_->plain.peak; }
int64_t Planner::floor_bytes() const { return impl_->floor; }
int64_t Planner::least_bytes() { return impl_->least(nullptr); }

std::vector<Plan> Planner::pareto(int points) {
  if (points < 2) throw InvalidArgument(fmt::format("pareto: found {} points; expected 2 or more", points));
  std::vector<Plan> plans;
  plans.reserve(static_cast<size_t>(points));
  for (int k = 0; k < points; ++k)
    plans.push_back(impl_->plan(Budget::of_fraction(static_cast<double>(k) / (points - 1))));
  return plans;
}

Plan plan(const graph::Graph& graph, Budget budget, const PlanOptions& options) {
  return Planner(graph, options).plan(budget);
}

}  // namespace refrain::plan
