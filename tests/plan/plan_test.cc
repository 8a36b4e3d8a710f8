#include "plan/plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "graph/families.h"
#include "graph/random_graph.h"
#include "graph/text.h"
#include "plan/linear_program.h"
#include "refrain/error.h"

namespace refrain::plan {
namespace {

using graph::plain_peak;

int64_t part(const graph::Graph& graph, double fraction) {
  return static_cast<int64_t>(fraction * static_cast<double>(plain_peak(graph)));
}

Plan plan_with(const graph::Graph& graph, Solver solver, int64_t budget) {
  PlanOptions options;
  options.solver = solver;
  options.bound = false;
  return plan(graph, Budget::of_bytes(budget), options);
}

TEST(Plan, PlainPeakNeedsNothing) {
  const auto graph = graph::make_transformer(2);
  const Plan all = plan(graph, Budget::of_fraction(1.0));
  EXPECT_TRUE(all.is_feasible);
  EXPECT_EQ(all.added_ns, 0);
  EXPECT_EQ(all.proof, "exact");
  EXPECT_EQ(all.gap(), 0.0);
}

TEST(Plan, DropsTheOneValueThatPays) {
  const auto step = graph::parse(R"(
    source x bytes=8
    cheap = aten::relu(x) ns=1 bytes=100
    dear = aten::mm(x) ns=50 bytes=100
    y = aten::mul(x) ns=1 bytes=100
    loss_grad = done(y) bytes=8
    a = back(cheap, loss_grad) backward bytes=8
    b = back(dear, a) backward bytes=8
  )");
  const Plan found = plan(step.graph, Budget::of_bytes(plain_peak(step.graph) - 60));
  ASSERT_TRUE(found.is_feasible) << found.report();
  EXPECT_EQ(found.added_ns, 1);
  EXPECT_EQ(found.bound_ns, 1);
  EXPECT_EQ(found.proof, "exact");
}

TEST(Plan, RecomputesWhatWasWrittenInPlaceFromItsProducer) {
  const auto step = graph::parse(R"(
    source x bytes=8
    conv = aten::conv(x) ns=5 bytes=100
    active = aten::relu_(conv!) ns=1
    y = aten::mm(active) ns=9 bytes=100
    z = aten::mm(y) ns=9 bytes=100
    gz = back(z) backward bytes=8
    gy = back(active, gz) backward bytes=8
  )");
  const Plan found = plan(step.graph, Budget::of_bytes(plain_peak(step.graph) - 100));
  ASSERT_TRUE(found.is_feasible) << found.report();
  EXPECT_EQ(found.added_ns, 6);
  EXPECT_EQ(graph::to_text(step.graph, found.schedule).find("recompute_in_place") != std::string::npos, true);
}

/// Whether it is there, and ends soon.
bool is_quick(Solver solver) {
  return solver != Solver::kExact && (solver != Solver::kLpRounding || why_no_linear_programs().empty());
}

TEST(Plan, EverySolverKeepsTheBudgetOrSaysSo) {
  for (const auto family : graph::kFamilies) {
    const auto graph = graph::make_family(family, 130, 1);
    for (const Solver solver : all_solvers()) {
      if (!is_quick(solver)) continue;
      for (const double fraction : {0.8, 0.6, 0.4}) {
        const Plan found = plan_with(graph, solver, part(graph, fraction));
        const auto run = graph::simulate(graph, found.schedule);
        ASSERT_EQ(run.error, "") << solver_name(solver);
        EXPECT_EQ(run.peak, found.peak);
        EXPECT_EQ(run.added_ns, found.added_ns);
        EXPECT_EQ(found.is_feasible, run.peak <= part(graph, fraction)) << solver_name(solver);
        EXPECT_GE(run.peak, found.floor_bytes);
      }
    }
  }
}

TEST(Plan, AutoIsNeverWorseThanAnySolver) {
  for (const auto family : graph::kFamilies) {
    const auto graph = graph::make_family(family, 110, 2);
    for (const double fraction : {0.75, 0.5}) {
      const Plan best = plan_with(graph, Solver::kAuto, part(graph, fraction));
      for (const Solver solver : all_solvers()) {
        if (!is_quick(solver)) continue;
        const Plan other = plan_with(graph, solver, part(graph, fraction));
        if (!other.is_feasible) continue;
        ASSERT_TRUE(best.is_feasible) << graph::family_name(family) << " " << solver_name(solver);
        EXPECT_LE(best.added_ns, other.added_ns) << graph::family_name(family) << " " << solver_name(solver);
      }
    }
  }
}

TEST(Plan, IsNeverWorseThanAStart) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const auto graph = graph::random_graph(seed);
    PlanOptions options;
    options.bound = false;
    options.step_limit = 1;  // nothing else has time
    for (uint64_t k = 0; k < 5; ++k) options.starts.push_back(graph::random_schedule(graph, seed * 10 + k));
    for (const auto& start : options.starts) {
      const auto run = graph::simulate(graph, start);
      const Plan found = plan(graph, Budget::of_bytes(run.peak), options);
      ASSERT_TRUE(found.is_feasible) << seed;
      EXPECT_LE(found.added_ns, run.added_ns) << seed;
    }
  }
}

TEST(Plan, StartsThatCannotRunArePassedOver) {
  const auto graph = graph::make_transformer(1);
  PlanOptions options;
  options.starts.resize(1);
  options.starts[0].places.resize(3);
  EXPECT_TRUE(plan(graph, Budget::of_fraction(0.9), options).is_feasible);
}

TEST(Plan, IsDeterministic) {
  for (const auto family : graph::kFamilies) {
    const auto graph = graph::make_family(family, 150, 4);
    PlanOptions options;
    options.time_limit_s = 60;  // the clock must not strike
    options.step_limit = 3'000'000;
    options.bound = false;
    options.seed = 5;
    const Plan one = plan(graph, Budget::of_bytes(part(graph, 0.6)), options);
    const Plan two = plan(graph, Budget::of_bytes(part(graph, 0.6)), options);
    EXPECT_EQ(one.schedule, two.schedule);
    EXPECT_EQ(one.solver, two.solver);
    EXPECT_FALSE(one.timed_out);
  }
}

TEST(Plan, LargerBudgetsNeverAddMoreTime) {
  for (const auto family : graph::kFamilies) {
    const auto graph = graph::make_family(family, 100, 3);
    PlanOptions options;
    options.bound = false;
    options.step_limit = 1'000'000;
    Planner planner(graph, options);
    const auto plans = planner.pareto(9);
    ASSERT_EQ(plans.size(), 9u);
    for (size_t k = 0; k < plans.size(); ++k) {
      EXPECT_TRUE(plans[k].is_feasible) << graph::family_name(family) << " " << k;
      EXPECT_LE(plans[k].peak, plans[k].budget_bytes);
      if (k > 0) {
        EXPECT_LE(plans[k].added_ns, plans[k - 1].added_ns) << graph::family_name(family) << " " << k;
      }
    }
    EXPECT_EQ(plans.front().budget_bytes, planner.least_bytes());
    EXPECT_EQ(plans.back().added_ns, 0);
  }
}

/// Each budget by a planner that knows of no other, the largest first.
void expect_monotone(const graph::Graph& graph, int64_t budgets, const std::string& name) {
  PlanOptions options;
  options.bound = false;
  options.time_limit_s = 600;  // the clock must not strike
  options.step_limit = 300'000;
  const int64_t floor = Planner(graph, options).floor_bytes(), plain = plain_peak(graph);
  int64_t above = 0;
  bool was_feasible = true;
  for (int64_t k = budgets; k >= 0; --k) {
    const int64_t budget = floor + (plain - floor) * k / budgets;
    const Plan found = plan(graph, Budget::of_bytes(budget), options);
    ASSERT_FALSE(found.timed_out);
    if (!found.is_feasible) {
      was_feasible = false;
      continue;
    }
    ASSERT_TRUE(was_feasible) << name << " " << k << ": a larger budget has no plan";
    EXPECT_LE(found.peak, budget);
    EXPECT_GE(found.added_ns, above) << name << " " << k << " of " << budgets;
    above = found.added_ns;
  }
}

TEST(Plan, LargerBudgetsOfSeparateCallsAddNoMoreTime) {
  for (const auto family : graph::kFamilies)
    expect_monotone(graph::make_family(family, 120, 3), 60, graph::family_name(family));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    graph::RandomGraphOptions shape;
    shape.forward_ops = 4 + static_cast<int>(seed) * 3;
    expect_monotone(graph::random_graph(seed, shape), 60, "seed " + std::to_string(seed));
  }
}

TEST(Plan, LargerBudgetsOfSeparateCallsAddNoMoreTimeInLargeGraphs) {
  expect_monotone(graph::make_family(graph::Family::kResidual, 2200, 1), 12, "residual");
}

/// The step of a transformer of 12 layers, beside checkpointing all of its blocks.
TEST(Plan, TwelveLayersNeedLessThanCheckpointedBlocks) {
  const auto graph = graph::make_transformer(12);
  const Plan blocks = plan_with(graph, Solver::kPerBlock, 0);  // the least peak that it has
  PlanOptions options;
  options.bound = false;
  Planner planner(graph, options);
  const Plan same_peak = planner.plan(Budget::of_bytes(blocks.peak));
  ASSERT_TRUE(same_peak.is_feasible);
  EXPECT_LE(same_peak.peak, blocks.peak);
  EXPECT_LE(same_peak.added_ns, blocks.added_ns);
  int64_t low = planner.least_bytes(), high = blocks.peak;  // the least budget that costs no more time
  while (high - low > (1 << 16)) {
    const int64_t middle = low + (high - low) / 2;
    (planner.plan(Budget::of_bytes(middle)).added_ns <= blocks.added_ns ? high : low) = middle;
  }
  const Plan same_time = planner.plan(Budget::of_bytes(high));
  EXPECT_LE(same_time.added_ns, blocks.added_ns);
  EXPECT_LE(same_time.peak, blocks.peak);
  fmt::print("blocks: {} bytes, {} ns; same peak: {} bytes, {} ns; same time: {} bytes, {} ns\n", blocks.peak,
             blocks.added_ns, same_peak.peak, same_peak.added_ns, same_time.peak, same_time.added_ns);
}

TEST(Plan, InfeasibleSaysWhatWouldDo) {
  const auto graph = graph::make_family(graph::Family::kUnet, 120, 0);
  const Plan found = plan(graph, Budget::of_bytes(1));
  EXPECT_FALSE(found.is_feasible);
  EXPECT_EQ(found.proof, "floor");
  EXPECT_GT(found.least_bytes, 0);
  EXPECT_EQ(found.least_bytes, found.peak);
  EXPECT_GE(found.least_bytes, found.floor_bytes);
  const auto run = graph::simulate(graph, found.schedule);
  EXPECT_EQ(run.peak, found.least_bytes);
  EXPECT_TRUE(plan(graph, Budget::of_bytes(found.least_bytes)).is_feasible);
}

TEST(Plan, BoundsOfFamiliesAreBelowTheirPlans) {
  for (const auto family : graph::kFamilies) {
    const auto graph = graph::make_family(family, 120, 6);
    for (const double fraction : {0.8, 0.5}) {
      const Plan found = plan(graph, Budget::of_bytes(part(graph, fraction)));
      if (!found.is_feasible) continue;
      EXPECT_LE(found.bound_ns, found.added_ns) << found.report();
      EXPECT_GT(found.bound_ns, 0) << found.report();
      EXPECT_NE(found.proof, "none");
    }
  }
}

TEST(Plan, TimeLimitEndsIt) {
  const auto graph = graph::make_transformer(100);
  PlanOptions options;
  options.time_limit_s = 0.02;
  options.step_limit = int64_t{1} << 50;
  const Plan found = plan(graph, Budget::of_bytes(part(graph, 0.5)), options);
  EXPECT_TRUE(found.timed_out);
  EXPECT_EQ(graph::simulate(graph, found.schedule).error, "");

  const auto begin = std::chrono::steady_clock::now();
  options.step_limit = 0;
  options.time_limit_s = 0.0;  // means what it says
  const Plan first = plan(graph, Budget::of_bytes(part(graph, 0.5)), options);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  EXPECT_EQ(graph::simulate(graph, first.schedule).error, "");
}

TEST(Plan, RefusesWhatCannotBe) {
  const auto graph = graph::make_transformer(1);
  EXPECT_THROW(plan(graph, Budget::of_bytes(-1)), InvalidArgument);
  EXPECT_THROW(plan(graph, Budget::of_fraction(1.5)), InvalidArgument);
  PlanOptions options;
  options.time_limit_s = -1;
  EXPECT_THROW(plan(graph, Budget::of_fraction(0.5), options), InvalidArgument);
  auto broken = graph;
  broken.ops[0].ns = -1;
  EXPECT_THROW(plan(broken, Budget::of_fraction(0.5)), InvalidArgument);
  EXPECT_THROW(solver_by_name("greedi"), InvalidArgument);
  EXPECT_EQ(solver_by_name("greedy"), Solver::kGreedy);
}

TEST(Plan, GraphsOfAlmostNothing) {
  const graph::Graph nothing;
  EXPECT_TRUE(plan(nothing, Budget::of_bytes(0)).is_feasible);
  const auto one = graph::parse("a = make() bytes=5\n").graph;
  EXPECT_TRUE(plan(one, Budget::of_fraction(0.0)).is_feasible);
  EXPECT_FALSE(plan(one, Budget::of_bytes(4)).is_feasible);
}

TEST(LinearProgram, SolvesOrSaysWhyNot) {
  LinearProgram program;
  const auto x = program.add_column(1.0, 0.0, 10.0, true), y = program.add_column(2.0, 0.0, 10.0);
  program.begin_row(2.5, LinearProgram::infinite());
  program.add(x, 1.0);
  program.add(y, 1.0);
  program.begin_row(-LinearProgram::infinite(), 2.2);
  program.add(x, 1.0);
  const auto solution = program.solve(10.0, false);
  if (!why_no_linear_programs().empty()) {
    EXPECT_EQ(solution.status, LinearProgram::Status::kUnavailable);
    return;
  }
  ASSERT_EQ(solution.status, LinearProgram::Status::kOptimal);
  EXPECT_NEAR(solution.cost, 3.0, 1e-9);
  EXPECT_NEAR(program.solve(10.0, true).cost, 2.8, 1e-9);
}

}  // namespace
}  // namespace refrain::plan
