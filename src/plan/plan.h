#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graph/schedule.h"

/// Chooses which values of a step to drop and which operators to recompute, so that the step fits a budget of bytes and
/// takes least time. See docs/design/plan.md.
namespace refrain::plan {

/// Origin of a plan.
enum class Solver {
  kAuto,     ///< the best of all, improved by local search; for all budgets at once
  kKeepAll,  ///< nothing is dropped before its last use
  /// Segments of about sqrt(n) operators. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016
  kSqrtN,
  /// The first m blocks of the model are checkpointed, m as small as the budget allows, as with torch.utils.checkpoint
  kPerBlock,
  kSelective,  ///< outputs of named operators are saved, all else is recomputed
  kMinCut,     ///< least bytes saved for backward, costly operators never recomputed: torch.compile's partitioner
  kKnapsack,   ///< bytes saved for backward within a limit, least time: torch.compile's activation memory budget
  kXla,        ///< at the peak, drops values with most bytes for their time, one by one, as XLA's pass does
  kGreedy,     ///< least time for the bytes over budget in all slots
  /// Dynamic program over a chain of blocks. Beaumont et al., "Optimal checkpointing for heterogeneous chains", 2019
  /// (rotor)
  kChain,
  kPricedCut,    ///< min cuts under prices per byte that rise where the budget is exceeded
  kLocalSearch,  ///< greedy, then local search
  /// Mixed integer program: Jain et al., "Checkmate", MLSys 2020; small graphs, needs HiGHS; very small ones by search
  kExact,
  /// The relaxation of the same program, solved for 0 to 50 % less than the budget; values resident by half or more are
  /// kept, others recomputed where needed. Jain et al., "Checkmate", two-phase rounding; needs HiGHS
  kLpRounding,
};

std::string_view solver_name(Solver solver);
/// Lists all solvers, in the order above.
const std::vector<Solver>& all_solvers();
/// @throws InvalidArgument naming all solvers, if there is no such one.
Solver solver_by_name(std::string_view name);

/// Limit on the peak of bytes in use during the step, all that the graph counts included.
struct Budget {
  int64_t bytes = 0;
  double fraction = -1.0;  ///< 0 to 1: from the lowest peak found to the baseline's; negative: `bytes` counts

  static Budget of_bytes(int64_t bytes) { return {bytes, -1.0}; }
  static Budget of_fraction(double fraction) { return {0, fraction}; }
};

struct PlanOptions {
  Solver solver = Solver::kAuto;
  /// Seconds for the solvers, >= 0; the bound has as many more. None: 3 s, more above 10,000 operators; for the bound 1
  /// s, more above 8,000. Makes a difference only if it is reached
  std::optional<double> time_limit_s = std::nullopt;
  int64_t step_limit = 0;               ///< of work, about 20 ns each; 0: what suits the graph and `time_limit_s`
  uint64_t seed = 0;                    ///< of the local search
  bool bound = true;                    ///< prove a lower bound on the added time of plans for the budget
  std::vector<std::string> saved_ops;   ///< for kSelective; empty: matrix products, convolutions, attention
  std::vector<graph::Schedule> starts;  ///< further plans, such as a cap's decisions; those that cannot run are ignored
  /// Smaller values are always kept; negative: such that they are 1/1,000 of the baseline's peak together
  int64_t tiny_bytes = -1;
};

/// Limits the steps of work where neither `time_limit_s` nor `step_limit` is given: for tests that plan for thousands
/// of small graphs. Process-wide. @return the old number. Default: no limit. Threads: any.
int64_t limit_default_steps(int64_t most);

/// The cost of one part of the work.
struct Phase {
  std::string name;
  double seconds = 0.0;
  int64_t steps = 0;
  bool fits = false;
  int64_t peak = 0, added_ns = 0;  ///< of its best
};

/// A schedule and what is known about it. An infeasible budget is a result.
struct Plan {
  bool is_feasible = false;
  graph::Schedule schedule;  ///< if infeasible: the one of lowest peak found
  std::string solver;        ///< that found it
  int64_t budget_bytes = 0;
  int64_t peak = 0;  ///< of the schedule, by `graph::simulate`
  int64_t added_ns = 0;
  int64_t recomputed_ops = 0;
  int64_t plain_peak = 0;
  int64_t step_ns = 0;      ///< of all operators once
  int64_t floor_bytes = 0;  ///< lower bound on the peak of any schedule
  int64_t least_bytes = 0;  ///< lowest peak found; 0: not searched for, as the budget was met
  int64_t bound_ns = 0;     ///< lower bound on the added time within the budget
  /// Kind of the bound: none, cut (at one place), lp, integer, exact; if infeasible, that nothing fits: none, floor,
  /// exact
  std::string proof = "none";
  bool timed_out = false;
  std::vector<Phase> phases;

  /// (added_ns - bound_ns) / (step_ns + bound_ns); 0: proven best.
  double gap() const;
  std::string brief() const;   ///< one line
  std::string report() const;  ///< all, with time by phase
};

/// Plans for one graph. `Solver::kAuto` searches once, for all budgets; then each is looked up. A larger budget never
/// gives more added time, also for another `Planner` with the same graph and options, unless a time limit strikes.
class Planner {
 public:
  /// `graph` must outlive this. @throws InvalidArgument  if it has a defect, or an option is out of range.
  explicit Planner(const graph::Graph& graph, PlanOptions options = {});
  ~Planner();
  Planner(Planner&&) noexcept;

  /// @throws InvalidArgument  if the budget is negative or its fraction above 1.
  Plan plan(Budget budget);

  /// Plans for `points` budgets from the lowest peak to the baseline's. Each adds no more time than those before it.
  std::vector<Plan> pareto(int points);

  int64_t plain_peak() const;
  int64_t floor_bytes() const;
  /// Lowest peak found by greedy descent. Computed once.
  int64_t least_bytes();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Plans for one budget. Deterministic for a seed unless the time limit strikes.
Plan plan(const graph::Graph& graph, Budget budget, const PlanOptions& options = {});

}  // namespace refrain::plan
