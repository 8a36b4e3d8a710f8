/// Texts of `plan.h`: the names of solvers, and reports of plans.
#include <fmt/format.h>

#include <algorithm>

#include "base/suggest.h"
#include "plan/plan.h"
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
    {Solver::kLpRounding, "lp_rounding"},
};

std::string mib(int64_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0); }
double percent(int64_t part, int64_t of) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(std::max<int64_t>(1, of));
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

std::string Plan::brief() const {
  if (!is_feasible)
    return fmt::format("no plan found for {}: lowest peak found {}, lower bound {} (baseline {})", mib(budget_bytes),
                       mib(peak), mib(floor_bytes), mib(plain_peak));
  return fmt::format("peak {} of {} (baseline {}), {:.2f} % time added by {} operators, at least {:.2f} % ({}), by {}",
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
