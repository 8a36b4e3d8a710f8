#include "plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "base/suggest.h"
#include "plan/blocks.h"
#include "plan/bound.h"
#include "plan/effort.h"
#include "plan/exhaustive.h"
#include "plan/search.h"
#include "plan/stage_program.h"
#include "plan/strategies.h"
#include "refrain/error.h"

namespace refrain::plan {
namespace {

struct Named {
  Solver solver;
  std::string_view name;
};
constexpr Named kNames[] = {
    {Solver::kAuto, "auto"},
    {Solver::kKeepAll, "keep_all"},
    {Solver::kSqrtN, "sqrt_n"},
    {Solver::kPerBlock, "per_block"},
    {Solver::kSelective, "selective"},
    {Solver::kMinCut, "min_cut"},
    {Solver::kKnapsack, "knapsack"},
    {Solver::kXla, "xla"},
    {Solver::kGreedy, "greedy"},
    {Solver::kChain, "chain"},
    {Solver::kPricedCut, "priced_cut"},
    {Solver::kLocalSearch, "local_search"},
    {Solver::kExact, "exact"},
};

constexpr size_t kExactOps = 40;        // up to which integer programs are quick
constexpr size_t kPatientOps = 150;     // up to which they are worth a try, if so many seconds are given:
constexpr double kPatientSeconds = 5;
constexpr size_t kLpOps = 400;          // likewise for linear ones, if no time is given
constexpr size_t kLadderOps = 2000;     // up to which there is time for shared budgets and large neighbourhoods
constexpr int64_t kShakeRounds = 2000;  // without success

constexpr double kStepsPerSecond = 3.5e7;  // on a slow machine, so that the clock seldom strikes

/// A plan that was found.
struct Point {
  int64_t peak = 0, added_ns = 0;
  std::string solver;
  Stays stays;                              ///< or
  std::optional<graph::Schedule> schedule;  ///< one from outside
};

double default_seconds(const graph::Graph& graph, double asked) {
  if (asked > 0.0) return asked;
  return std::max(1.0, static_cast<double>(graph.ops.size()) / 8000.0);
}

}  // namespace

std::string_view solver_name(Solver solver) {
  for (const Named& named : kNames)
    if (named.solver == solver) return named.name;
  return "";
}

const std::vector<Solver>& all_solvers() {
  static const std::vector<Solver> all = [] {
    std::vector<Solver> solvers;
    for (const Named& named : kNames) solvers.push_back(named.solver);
    return solvers;
  }();
  return all;
}

Solver solver_by_name(std::string_view name) {
  std::vector<std::string> names;
  for (const Named& named : kNames) {
    if (named.name == name) return named.solver;
    names.emplace_back(named.name);
  }
  std::string list;
  for (const std::string& known : names) list += (list.empty() ? "" : ", ") + known;
  const auto near = nearest(std::string(name), names);
  throw InvalidArgument(fmt::format("unknown solver '{}': expected one of {}{}", name, list,
                                    near.empty() ? "" : "; did you mean " + near.front() + "?"));
}

double Plan::gap() const {
  return static_cast<double>(added_ns - bound_ns) / static_cast<double>(std::max<int64_t>(1, step_ns + bound_ns));
}

struct Planner::Impl {
  Impl(const graph::Graph& graph_in, PlanOptions options_in)
      : graph(graph_in),
        options(std::move(options_in)),
        plain(graph::simulate(graph, graph::empty_schedule(graph))),
        exact_problem(graph, 0),
        problem(graph, tiny_bytes()),
        state(problem) {
    step_ns = graph::operators_ns(graph);
    floor = refrain::plan::floor_bytes(exact_problem);
    add({state.peak(), 0, "keep_all", state.stays(), {}});
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

  // ---- what was found

  void add(Point point) {
    for (const Point& known : points)
      if (known.peak <= point.peak && known.added_ns <= point.added_ns) return;
    std::erase_if(points,
                  [&](const Point& known) { return point.peak <= known.peak && point.added_ns <= known.added_ns; });
    points.push_back(std::move(point));
    std::sort(points.begin(), points.end(), [](const Point& a, const Point& b) { return a.peak < b.peak; });
  }

  void add_state(std::string solver) { add({state.peak(), state.added_ns(), std::move(solver), state.stays(), {}}); }

  void add_start(const graph::Schedule& schedule) {
    const auto run = graph::simulate(graph, schedule);
    if (!run.error.empty()) return;
    if (state.assign(State::stays_of(problem, schedule))) add_state("start");
    add({run.peak, run.added_ns, "start", {}, schedule});
  }

  /// Least time within `budget`; null: nothing fits.
  const Point* best(int64_t budget) const {
    const Point* best = nullptr;
    for (const Point& point : points)
      if (point.peak <= budget) best = &point;  // the larger the peak, the less the time
    return best;
  }

  bool load(const Point& point) {
    return point.schedule ? state.assign(State::stays_of(problem, *point.schedule)) : state.assign(point.stays);
  }

  // ---- solvers

  using Run = bool (*)(State&, int64_t, Effort&);

  bool run(Solver solver, int64_t budget, Effort& effort) {
    Search search(state, effort);
    switch (solver) {
      case Solver::kKeepAll:
        state.assign(save_only(problem, [](ValueId) { return true; }));
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
      case Solver::kLocalSearch:
        state.assign(save_only(problem, [](ValueId) { return true; }));
        if (search.descend(budget)) {
          search.refill(budget);
          search.improve(budget, options.seed, improve_rounds());
        }
        break;
      default:
        state.assign(save_only(problem, [](ValueId) { return true; }));
        search.descend(budget);
        break;
    }
    return state.peak() <= budget;
  }

  int64_t improve_rounds() const { return 400 + static_cast<int64_t>(graph.ops.size()) / 4; }

  /// Small graphs: all there is. @return whether that is decided.
  bool search_all(int64_t budget, Effort& effort) {
    if (graph.ops.size() > 24) return false;
    auto result = search_exhaustively(graph, budget, 300'000, effort);
    if (result.status == ExhaustiveResult::Status::kLimit) return false;
    program_bound = {result.added_ns, "exact", result.status == ExhaustiveResult::Status::kInfeasible};
    if (program_bound.is_infeasible) return true;
    const auto run = graph::simulate(graph, result.schedule);
    if (state.assign(State::stays_of(problem, result.schedule))) add_state("exact");
    add({run.peak, run.added_ns, "exact", {}, std::move(result.schedule)});
    return true;
  }

  /// The integer program knows nothing of bytes in use while operators run again: what it says may need further drops.
  void solve_exact(int64_t budget, Effort& effort) {
    if (search_all(budget, effort)) return;
    std::vector<OpId> places;
    for (OpId place = 0; place <= exact_problem.ends; ++place) places.push_back(place);
    const auto result = StageProgram(exact_problem, budget, places).solve(std::max(0.01, effort.seconds_left()), false);
    if (result.status == LinearProgram::Status::kInfeasible) program_bound = {0, "exact", true};
    if (result.bound_ns > 0) program_bound = {result.bound_ns, "exact", false};
    if (result.stays.empty() || !state.assign(result.stays)) {
      state.assign(save_only(problem, [](ValueId) { return true; }));
      return;
    }
    Search search(state, effort);
    if (state.peak() > budget) search.descend(budget);
    if (state.peak() <= budget) search.refill(budget);
  }

  void measure(Plan& plan, const std::string& name, int64_t budget, Effort& effort, const std::function<void()>& work) {
    const auto begin = Effort::Clock::now();
    const int64_t before = effort.spent();
    work();
    Phase phase;
    phase.name = name;
    phase.seconds = std::chrono::duration<double>(Effort::Clock::now() - begin).count();
    phase.steps = effort.spent() - before;
    phase.peak = state.peak();
    phase.added_ns = state.added_ns();
    phase.fits = phase.peak <= budget;
    plan.phases.push_back(std::move(phase));
    add_state(name);
  }

  void run_auto(Plan& plan, int64_t budget, Effort& effort) {
    std::vector<Point> starts;
    const auto note = [&](const std::string& name) {
      if (state.peak() <= budget) starts.push_back({state.peak(), state.added_ns(), name, state.stays(), {}});
    };
    const bool is_small = graph.ops.size() <= 2000;
    for (const double exponent : is_small ? std::vector{0.0, 1.0, 0.25, 0.5, 2.0} : std::vector{0.0, 1.0}) {
      const std::string name = exponent == 0.0 ? "greedy" : fmt::format("greedy^{:g}", exponent);
      measure(plan, name, budget, effort, [&] {
        state.assign(save_only(problem, [](ValueId) { return true; }));
        Effort part(effort.left() / 2, effort.seconds_left() / 2);
        Search search(state, part);
        if (search.descend(budget, {exponent, true})) search.refill(budget);
        effort.spend(part.spent());
      });
      if (exponent != 0.0) {
        note(name);
        continue;
      }
      // as the solver local_search does, which auto must not be worse than
      measure(plan, name + "+", budget, effort, [&] {
        Effort part(effort.left() / 4, effort.seconds_left() / 4);
        if (state.peak() <= budget) Search(state, part).improve(budget, options.seed, improve_rounds());
        effort.spend(part.spent());
      });
      note(name);
    }
    for (const Solver solver : {Solver::kPerBlock, Solver::kSqrtN, Solver::kSelective, Solver::kMinCut,
                                Solver::kKnapsack, Solver::kChain, Solver::kPricedCut, Solver::kXla}) {
      if (effort.is_over()) break;
      const std::string name(solver_name(solver));
      measure(plan, name, budget, effort, [&] {
        Effort part(effort.left() / 8, effort.seconds_left() / 4);
        const bool fits = run(solver, budget, part);
        add_state(name);
        // what does not fit is a start point all the same
        Search search(state, part);
        if (fits || search.descend(budget)) search.refill(budget);
        effort.spend(part.spent());
      });
      note(name);
    }
    for (const Point& point : points)
      if (point.solver == "start") starts.push_back(point);
    improve_some(plan, budget, std::move(starts), effort);
    improve(plan, budget, effort);
    descend_ladder(plan, budget, effort);
    shake(plan, budget, effort);
    if (graph.ops.size() <= most_exact_ops() && !effort.is_over())
      measure(plan, "exact", budget, effort, [&] { solve_exact(budget, effort); });
  }

  /// Local search for a while from each of the best few.
  void improve_some(Plan& plan, int64_t budget, std::vector<Point> starts, Effort& effort) {
    std::stable_sort(starts.begin(), starts.end(),
                     [](const Point& a, const Point& b) { return a.added_ns < b.added_ns; });
    constexpr size_t kTried = 6;
    int64_t last = -1;
    size_t tried = 0;
    for (const Point& start : starts) {
      if (tried == kTried || effort.is_over()) return;
      if (start.added_ns == last || !load(start) || state.peak() > budget) continue;
      last = start.added_ns;
      ++tried;
      measure(plan, start.solver + "+", budget, effort, [&] {
        Effort part(effort.left() / 4, effort.seconds_left() / 4);
        Search search(state, part);
        search.refill(budget);
        search.improve(budget, options.seed + tried, improve_rounds() / 2);
        effort.spend(part.spent());
      });
    }
  }

  /// Local search from the best.
  void improve(Plan& plan, int64_t budget, Effort& effort) {
    const Point* start = best(budget);
    if (start == nullptr || start->added_ns == 0) return;
    measure(plan, "local_search", budget, effort, [&] {
      load(Point(*start));
      if (state.peak() > budget) return;
      const bool more_follows = graph.ops.size() <= kLadderOps;
      Effort part(more_follows ? effort.left() / 3 : effort.left(), effort.seconds_left());
      Search search(state, part);
      search.refill(budget);
      search.improve(budget, options.seed, 8 * improve_rounds());
      effort.spend(part.spent());
    });
  }

  /// Greedy for all smaller budgets of a ladder that all calls share, and what is left of this one's used up: what is
  /// found for one of them serves this one too, so that a call for less seldom finds more than this one.
  void descend_ladder(Plan& plan, int64_t budget, Effort& effort) {
    if (graph.ops.size() > kLadderOps || effort.is_over()) return;
    constexpr int64_t kRungs = 48;
    const int64_t range = std::max<int64_t>(1, plain.peak - floor);
    measure(plan, "ladder", budget, effort, [&] {
      Effort part(effort.left() / 4, effort.seconds_left() / 4);
      Search search(state, part);
      for (int64_t rung = std::min(kRungs - 1, (budget - floor) * kRungs / range); rung > 0; --rung)
        for (const double exponent : {0.0, 1.0}) {
          if (part.is_over()) break;
          const int64_t bytes = floor + range * rung / kRungs;
          state.assign(save_only(problem, [](ValueId) { return true; }));
          if (!search.descend(bytes, {exponent, true})) continue;
          search.refill(bytes);
          add_state("ladder");
          search.refill(budget);
          add_state("ladder");
        }
      effort.spend(part.spent());
    });
  }

  /// Large neighbourhoods of the best.
  void shake(Plan& plan, int64_t budget, Effort& effort) {
    const Point* start = best(budget);
    if (graph.ops.size() > kLadderOps || start == nullptr || start->added_ns == 0 || effort.is_over()) return;
    measure(plan, "neighbourhoods", budget, effort, [&] {
      load(Point(*start));
      if (state.peak() > budget) return;
      Effort part(effort.left() * 3 / 4, effort.seconds_left() * 3 / 4);
      Search(state, part).shake(budget, options.seed, kShakeRounds);
      effort.spend(part.spent());
    });
  }

  int64_t least(Plan* plan) {
    if (least_known) return least_peak;
    least_known = true;
    Effort effort(options.step_limit > 0 ? options.step_limit : static_cast<int64_t>(seconds() * kStepsPerSecond),
                  seconds());
    Plan unused;
    measure(plan != nullptr ? *plan : unused, "least_peak", 0, effort, [&] { descend_to_least(effort); });
    least_peak = points.front().peak;
    return least_peak;
  }

  void descend_to_least(Effort& effort) {
    load(points.front());
    int64_t low = floor, high = state.peak();
    Stays stays = state.stays();
    for (int round = 0; round < 24 && high > low && !effort.is_over(); ++round) {
      const int64_t target = round < 12 ? low + (high - low) * 3 / 4 : low + (high - low) / 2;
      Effort part(effort.left() / 4, effort.seconds_left() / 2);
      Search search(state, part);
      const bool fits = search.descend(target);
      effort.spend(part.spent());
      add_state("least_peak");
      if (fits) {
        high = state.peak();
        stays = state.stays();
      } else {
        high = std::min(high, state.peak());
        low = target;
        state.assign(stays);
      }
    }
  }

  /// Integer programs end by the clock, so not where steps are limited.
  size_t most_exact_ops() const {
    return options.time_limit_s >= kPatientSeconds && options.step_limit == 0 ? kPatientOps : kExactOps;
  }

  double seconds() const { return default_seconds(graph, options.time_limit_s); }

  Plan plan(Budget budget) {
    Plan plan;
    plan.plain_peak = plain.peak;
    plan.step_ns = step_ns;
    plan.floor_bytes = floor;
    plan.budget_bytes = to_bytes(budget, plan);
    program_bound = {};
    Effort effort(options.step_limit > 0 ? options.step_limit : static_cast<int64_t>(seconds() * kStepsPerSecond),
                  seconds());
    solve(plan, effort);
    plan.timed_out = effort.timed_out();
    finish(plan);
    if (options.bound) prove(plan);
    return plan;
  }

  void solve(Plan& plan, Effort& effort) {
    const int64_t bytes = plan.budget_bytes;
    if (options.solver != Solver::kAuto) {
      points.clear();
      const std::string name(solver_name(options.solver));
      measure(plan, name, bytes, effort, [&] { run(options.solver, bytes, effort); });
      return;
    }
    const Point* known = best(bytes);
    if ((known != nullptr && known->added_ns == 0) || floor > bytes) {
      if (known == nullptr) plan.least_bytes = least(&plan);
      return;
    }
    run_auto(plan, bytes, effort);
    if (best(bytes) == nullptr) plan.least_bytes = least(&plan);
    if (plan.least_bytes > 0 && best(bytes) != nullptr) {
      plan.least_bytes = 0;
      improve(plan, bytes, effort);
    }
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
    const Point* point = best(plan.budget_bytes);
    plan.is_feasible = point != nullptr;
    if (point == nullptr) point = &points.front();
    plan.solver = point->solver;
    if (point->schedule) {
      plan.schedule = *point->schedule;
    } else {
      state.assign(point->stays);
      plan.schedule = state.schedule();
    }
    const auto run = graph::simulate(graph, plan.schedule);
    if (!run.error.empty()) throw Error("[refrain::plan] a plan that cannot run was made: " + run.error);
    plan.peak = run.peak;
    plan.added_ns = run.added_ns;
    plan.recomputed_ops = run.recomputed_ops;
    plan.is_feasible = plan.peak <= plan.budget_bytes;
  }

  void prove(Plan& plan) {
    if (!plan.is_feasible) {
      plan.proof = floor > plan.budget_bytes ? "floor" : program_bound.is_infeasible ? program_bound.proof : "none";
      return;
    }
    if (plan.added_ns == 0) {
      plan.proof = "exact";
      return;
    }
    Effort effort(static_cast<int64_t>(seconds() * kStepsPerSecond), seconds());
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
    if (graph.ops.size() <= kLpOps || options.time_limit_s > 0.0)
      consider("bound by lp",
               [&] { return lp_bound(exact_problem, plan.budget_bytes, std::max(0.01, effort.seconds_left())); });
    plan.bound_ns = best.added_ns;
    plan.proof = plan.bound_ns == plan.added_ns ? "exact" : best.proof;
  }

  const graph::Graph& graph;
  PlanOptions options;
  graph::Simulation plain;
  Problem exact_problem, problem;
  State state;
  std::vector<Point> points;  // by peak; time falls
  int64_t step_ns = 0, floor = 0, least_peak = 0;
  bool least_known = false;
  Bound program_bound;  // of the last integer program
};

namespace {

const graph::Graph& checked(const graph::Graph& graph, const PlanOptions& options) {
  if (const auto defect = graph::find_defect(graph); !defect.empty())
    throw InvalidArgument("plan: the graph has a defect: " + defect);
  if (options.time_limit_s < 0.0 || options.step_limit < 0)
    throw InvalidArgument(fmt::format("plan: found time_limit_s {} and step_limit {}; expected 0 or more",
                                      options.time_limit_s, options.step_limit));
  if (options.solver == Solver::kExact && graph.ops.size() > 24)
    if (const auto why = why_no_linear_programs(); !why.empty()) throw InvalidArgument("solver 'exact': " + why);
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
  for (int k = 0; k < points; ++k)
    plans.push_back(impl_->plan(Budget::of_fraction(static_cast<double>(k) / (points - 1))));
  return plans;
}

Plan plan(const graph::Graph& graph, Budget budget, const PlanOptions& options) {
  return Planner(graph, options).plan(budget);
}

namespace {

std::string mib(int64_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0); }
double percent(int64_t part, int64_t of) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(std::max<int64_t>(1, of));
}

}  // namespace

std::string Plan::brief() const {
  if (!is_feasible)
    return fmt::format("no plan found for {}: least peak found {}, none is below {} (plain {})", mib(budget_bytes),
                       mib(peak), mib(floor_bytes), mib(plain_peak));
  return fmt::format("peak {} of {} (plain {}), {:.2f} % time added by {} operators, at least {:.2f} % ({}), by {}",
                     mib(peak), mib(budget_bytes), mib(plain_peak), percent(added_ns, step_ns), recomputed_ops,
                     percent(bound_ns, step_ns), proof, solver);
}

std::string Plan::report() const {
  std::string text = brief() + "\n";
  for (const Phase& phase : phases)
    text += fmt::format("  {:<15} {:7.3f} s {:10} steps  {}{:.2f} % added, peak {}\n", phase.name, phase.seconds,
                        phase.steps, phase.fits ? "" : "over: ", percent(phase.added_ns, step_ns), mib(phase.peak));
  return text;
}

}  // namespace refrain::plan
