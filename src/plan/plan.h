#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "graph/schedule.h"

/// Which values of a step to drop and which operators to run again, so that the step fits a budget of bytes and takes
/// least time. docs/design/plan.md tells the whole of it.
namespace refrain::plan {

/// Where a plan comes from.
enum class Solver {
  kAuto,     ///< the best of all, improved by local search; for all budgets at once
  kKeepAll,  ///< nothing leaves before its last use
  /// Segments of about sqrt(n) operators. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016
  kSqrtN,
  /// The first m blocks of the model are checkpointed, m as small as the budget allows, as with torch.utils.checkpoint
  kPerBlock,
  kSelective,  ///< outputs of named operators are saved, all else is computed again
  kMinCut,     ///< least bytes saved for backward, costly operators never run again: torch.compile's partitioner
  kKnapsack,   ///< bytes saved for backward within a limit, least time: torch.compile's activation memory budget
  kXla,        ///< at the peak, what gives most bytes for its time, one by one, as XLA's rematerialization pass
  kGreedy,     ///< least time for the bytes over budget in all slots
  /// Dynamic program over a chain of blocks. Beaumont et al., "Optimal checkpointing for heterogeneous chains", 2019
  /// (rotor)
  kChain,
  kPricedCut,    ///< min cuts under prices per byte that rise where the budget is exceeded
  kLocalSearch,  ///< greedy, then local search
  /// Mixed integer program: Jain et al., "Checkmate", MLSys 2020; small graphs, needs HiGHS; very small ones by search
  kExact,
  /// The relaxation of the same program, solved for 0 to 50 % less than the budget; what is there by half or more stays,
  /// what else is needed is computed again. Jain et al., "Checkmate", two-phase rounding; needs HiGHS
  kLpRounding,
};

std::string_view solver_name(Solver solver);
/// All, in the order above.
const std::vector<Solver>& all_solvers();
/// @throws InvalidArgument naming the solvers there are.
Solver solver_by_name(std::string_view name);

/// Limit on the peak: most bytes in use during the step, all that the graph counts included.
struct Budget {
  int64_t bytes = 0;
  double fraction = -1.0;  ///< 0 to 1: from the least peak found to the plain one; negative: `bytes` counts

  static Budget of_bytes(int64_t bytes) { return {bytes, -1.0}; }
  static Budget of_fraction(double fraction) { return {0, fraction}; }
};

struct PlanOptions {
  Solver solver = Solver::kAuto;
  /// Of solvers; the bound has as much again. 0: 3 s, more above 10,000 operators; for the bound 1 s, more above 8,000.
  /// Matters only if it strikes
  double time_limit_s = 0.0;
  int64_t step_limit = 0;               ///< of work, about 20 ns each; 0: what suits the graph and `time_limit_s`
  uint64_t seed = 0;                    ///< of the local search
  bool bound = true;                    ///< prove how much time any plan for the budget adds at least
  std::vector<std::string> saved_ops;   ///< for kSelective; empty: matrix products, convolutions, attention
  std::vector<graph::Schedule> starts;  ///< further plans, as what a cap did; those that cannot run are passed over
  /// Smaller values always stay; negative: such that they are 1/1,000 of the plain peak together
  int64_t tiny_bytes = -1;
};

/// At most so many steps of work where neither `time_limit_s` nor `step_limit` is given: for tests that plan for thousands of small graphs.
/// Process-wide. @return the old number. Default: no limit. Threads: any.
int64_t limit_default_steps(int64_t most);

/// What one part of the work took.
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
  graph::Schedule schedule;  ///< if not feasible: the one of least peak found
  std::string solver;        ///< what found it
  int64_t budget_bytes = 0;
  int64_t peak = 0;  ///< of the schedule, by `graph::simulate`
  int64_t added_ns = 0;
  int64_t recomputed_ops = 0;
  int64_t plain_peak = 0;
  int64_t step_ns = 0;      ///< of all operators once
  int64_t floor_bytes = 0;  ///< no schedule has a lower peak
  int64_t least_bytes = 0;  ///< least peak found; 0: not looked for, as the budget was met
  int64_t bound_ns = 0;     ///< no schedule within the budget adds less
  /// Of the bound: none, cut (at one place), lp, integer, exact; if infeasible, that nothing fits: none, floor, exact
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

  /// Plans for `points` budgets from the least to the plain peak. Each adds no more time than those before it.
  std::vector<Plan> pareto(int points);

  int64_t plain_peak() const;
  int64_t floor_bytes() const;
  /// Least peak found by greedy descent. Worked out once.
  int64_t least_bytes();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One budget. Deterministic for a seed unless the time limit strikes.
Plan plan(const graph::Graph& graph, Budget budget, const PlanOptions& options = {});

}  // namespace refrain::plan
