#include <gtest/gtest.h>

#include "graph/random_graph.h"
#include "graph/text.h"
#include "tests/graph/reference_simulator.h"

namespace refrain::graph {
namespace {

/// @return whether the schedule runs.
bool expect_same(const Graph& graph, const Schedule& schedule) {
  const Simulation found = simulate(graph, schedule);
  const Simulation expected = reference_simulate(graph, schedule);
  const auto text = [&] { return to_text(graph) + "\n" + to_text(graph, schedule); };
  EXPECT_EQ(found.error.empty(), expected.error.empty()) << found.error << " | " << expected.error << "\n" << text();
  EXPECT_TRUE(found.error.starts_with(expected.error)) << found.error << " | " << expected.error << "\n" << text();
  if (!found.error.empty() || !expected.error.empty()) return false;
  EXPECT_EQ(found.in_use, expected.in_use) << text();
  EXPECT_EQ(found.peaks, expected.peaks) << text();
  EXPECT_EQ(found.peak, expected.peak) << text();
  EXPECT_EQ(found.peak_place, expected.peak_place) << text();
  EXPECT_EQ(found.peak_in_recompute, expected.peak_in_recompute) << text();
  EXPECT_EQ(found.added_ns, expected.added_ns) << text();
  EXPECT_EQ(found.recomputed_ops, expected.recomputed_ops) << text();
  return true;
}

TEST(SimulateRandom, PlainRuns) {
  for (uint64_t seed = 0; seed < 3000 && !HasFailure(); ++seed) {
    const Graph graph = random_graph(seed);
    EXPECT_TRUE(expect_same(graph, empty_schedule(graph)));
  }
}

TEST(SimulateRandom, SchedulesThatRun) {
  int64_t recomputed = 0;
  for (uint64_t seed = 0; seed < 6000 && !HasFailure(); ++seed) {
    RandomGraphOptions options;
    options.forward_ops = 2 + static_cast<int32_t>(seed % 25);
    const Graph graph = random_graph(seed, options);
    const Schedule schedule = random_schedule(graph, seed);
    EXPECT_TRUE(expect_same(graph, schedule)) << simulate(graph, schedule).error << "\n"
                                              << to_text(graph) << to_text(graph, schedule);
    recomputed += simulate(graph, schedule).recomputed_ops;
  }
  EXPECT_GT(recomputed, 6000);
}

TEST(SimulateRandom, SchedulesThatMayNotRun) {
  int runs = 0;
  constexpr int kSchedules = 6000;
  for (uint64_t seed = 0; seed < kSchedules && !HasFailure(); ++seed) {
    const Graph graph = random_graph(seed);
    runs += expect_same(graph, random_schedule(graph, seed, 0.05 * static_cast<double>(seed % 8)));
  }
  EXPECT_GT(runs, kSchedules / 10);  // else the test says little
  EXPECT_LT(runs, kSchedules * 9 / 10);
}

}  // namespace
}  // namespace refrain::graph
