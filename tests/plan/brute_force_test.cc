#include "tests/plan/brute_force.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "graph/random_graph.h"
#include "graph/text.h"
#include "plan/bound.h"
#include "plan/plan.h"
#include "plan/stage_program.h"

namespace refrain::plan {
namespace {

/// A small random step, a budget between what must be there and what the plain run needs, and the least time that the
/// budget costs.
struct Case {
  uint64_t seed = 0;
  graph::Graph graph;
  int64_t budget = 0;
  std::optional<int64_t> least_ns;

  std::string text() const {
    return fmt::format("seed {} budget {} least {}\n{}", seed, budget, least_ns ? *least_ns : -1,
                       graph::to_text(graph));
  }
};

/// At most 10 operators. @param step  of seeds, from 0 on.
template <typename Check>
int64_t for_each_case(uint64_t seeds, uint64_t step, Check&& check) {
  int64_t count = 0;
  for (uint64_t seed = 0; seed < seeds; seed += step) {
    graph::RandomGraphOptions shape;
    shape.forward_ops = 4;
    shape.most_bytes = seed % 3 == 0 ? 10 : 100;
    Case here;
    here.seed = seed;
    here.graph = graph::random_graph(seed, shape);
    if (here.graph.ops.size() > 10 || here.graph.values.size() > 16) continue;
    const int64_t floor = floor_bytes(Problem(here.graph));
    const int64_t plain = graph::plain_peak(here.graph);
    for (const double part : {0.0, 0.2, 0.5, 0.9}) {
      here.budget = floor + static_cast<int64_t>(part * static_cast<double>(plain - floor));
      here.least_ns = BruteForce(here.graph, here.budget).least_ns();
      ++count;
      check(here);
      if (testing::Test::HasFatalFailure()) return count;
    }
  }
  return count;
}

void expect_right(const Case& here, const Plan& plan) {
  const auto what = [&] { return here.text() + plan.brief() + "\n" + graph::to_text(here.graph, plan.schedule); };
  const auto run = graph::simulate(here.graph, plan.schedule);
  ASSERT_EQ(run.error, "") << what();
  ASSERT_EQ(run.added_ns, plan.added_ns) << what();
  ASSERT_EQ(run.peak, plan.peak) << what();
  ASSERT_EQ(plan.is_feasible, run.peak <= here.budget) << what();
  if (!here.least_ns) {
    ASSERT_FALSE(plan.is_feasible) << what();
    return;
  }
  ASSERT_LE(plan.bound_ns, *here.least_ns) << what();
  if (plan.is_feasible) {
    ASSERT_GE(plan.added_ns, *here.least_ns) << what();
    if (plan.proof == "exact") {
      ASSERT_EQ(plan.added_ns, *here.least_ns) << what();
    }
  } else {
    ASSERT_EQ(plan.proof, "none") << what();
  }
}

TEST(BruteForce, ExactAndAutoAreEqualToIt) {
  const auto count = for_each_case(2500, 1, [](const Case& here) {
    for (const Solver solver : {Solver::kAuto, Solver::kExact}) {
      PlanOptions options;
      options.solver = solver;
      const Plan plan = plan::plan(here.graph, Budget::of_bytes(here.budget), options);
      expect_right(here, plan);
      ASSERT_EQ(plan.is_feasible, here.least_ns.has_value()) << here.text();
      if (plan.is_feasible) {
        ASSERT_EQ(plan.added_ns, *here.least_ns) << here.text();
      }
    }
  });
  EXPECT_GT(count, 5000);
}

TEST(BruteForce, NoSolverIsBelowIt) {
  std::vector<int64_t> met(all_solvers().size()), best(all_solvers().size());
  int64_t feasible = 0;
  for_each_case(2500, 5, [&](const Case& here) {
    feasible += here.least_ns.has_value();
    for (size_t k = 0; k < all_solvers().size(); ++k) {
      PlanOptions options;
      options.solver = all_solvers()[k];
      const Plan plan = plan::plan(here.graph, Budget::of_bytes(here.budget), options);
      expect_right(here, plan);
      met[k] += plan.is_feasible;
      best[k] += plan.is_feasible && plan.added_ns == *here.least_ns;
    }
  });
  for (size_t k = 0; k < met.size(); ++k)
    fmt::print("{:<13} met {} of {} budgets, {} of them with least time\n", solver_name(all_solvers()[k]), met[k],
               feasible, best[k]);
}

/// w is dead when it is computed again, from a source that is gone later, and kept over the peak.
TEST(BruteForce, ADeadValueMayBeKeptOverThePeak) {
  const auto step = graph::parse(R"(
    source s bytes=1 death=3
    w = f(s) ns=7 bytes=1
    z = g(w) ns=5 bytes=100
    c = use(s) bytes=1
    big = h(c) bytes=100
    e = done(big) backward bytes=1
    r = back(z, e) backward bytes=1
  )");
  const int64_t plain = graph::plain_peak(step.graph);
  const auto least = BruteForce(step.graph, plain - 50).least_ns();
  ASSERT_EQ(least, 12);
  const Problem problem(step.graph);
  Effort effort(1'000'000, 60.0);
  const Bound cut = cut_bound(problem, plain - 50, effort), lp = lp_bound(problem, plain - 50, 60.0);
  for (const Bound& bound : {cut, lp}) {
    EXPECT_LE(bound.added_ns, *least) << bound.proof;
    EXPECT_FALSE(bound.is_infeasible) << bound.proof;
  }
}

TEST(BruteForce, NoBoundIsAboveIt) {
  int64_t cuts = 0, programs = 0, betweens = 0, feasible = 0;
  const auto count = for_each_case(3000, 1, [&](const Case& here) {
    const Problem problem(here.graph);
    Effort effort(1'000'000'000, 60.0);
    const Bound cut = cut_bound(problem, here.budget, effort), lp = lp_bound(problem, here.budget, 60.0);
    std::vector<OpId> some;
    for (OpId place = 0; place <= problem.ends; ++place)
      if (here.seed % 4 == 0 || place % 3 == 1) some.push_back(place);
    const auto integer = StageProgram(problem, here.budget, some).solve(60.0, false);
    const auto between = StageProgram(problem, here.budget, some, true).solve(60.0, false);
    const Bound program = integer_bound(problem, here.budget, 60.0, INT64_MAX);
    if (!here.least_ns) return;
    ++feasible;
    for (const Bound& bound : {cut, lp, program}) {
      ASSERT_FALSE(bound.is_infeasible) << here.text();
      ASSERT_LE(bound.added_ns, *here.least_ns) << bound.proof << "\n" << here.text();
    }
    ASSERT_NE(integer.status, LinearProgram::Status::kInfeasible) << here.text();
    ASSERT_LE(integer.bound_ns, *here.least_ns) << here.text();
    ASSERT_NE(between.status, LinearProgram::Status::kInfeasible) << here.text();
    ASSERT_LE(between.bound_ns, *here.least_ns) << here.text();
    ASSERT_GE(between.bound_ns, integer.bound_ns) << here.text();
    cuts += cut.added_ns == *here.least_ns;
    programs += integer.bound_ns == *here.least_ns;
    betweens += between.bound_ns == *here.least_ns;
  });
  EXPECT_GE(count, 4 * 2000);
  fmt::print("of {} feasible cases the cut bound was tight in {}, integer programs in {}, in {} with what is between\n",
             feasible, cuts, programs, betweens);
}

}  // namespace
}  // namespace refrain::plan
