#include "graph/peak.h"

#include <gtest/gtest.h>

#include <numeric>

#include "graph/random_graph.h"
#include "graph/text.h"

namespace refrain::graph {
namespace {

using Ids = std::vector<ValueId>;

int64_t sum(const Graph& graph, const Ids& ids) {
  return std::accumulate(ids.begin(), ids.end(), int64_t{0},
                         [&](int64_t bytes, ValueId v) { return bytes + graph.values[static_cast<size_t>(v)].bytes; });
}

constexpr auto kText = R"(
  source x bytes=100
  a = f(x) bytes=10
  b = g_(a!) ws=7 outside=3
  c = h(b) bytes=40 outside=5
  k(c) gap=2)";

TEST(FindPeak, InAnOperator) {
  const Graph graph = parse(kText).graph;
  const Peak peak = find_peak(graph, empty_schedule(graph));
  EXPECT_EQ(peak.bytes, 155);
  EXPECT_EQ(peak.place, 2);
  EXPECT_EQ(peak.running, 2);
  EXPECT_FALSE(peak.in_recompute);
  EXPECT_EQ(peak.there, (Ids{0, 2}));
  EXPECT_EQ(peak.outside, 5);
  EXPECT_EQ(peak.made, 40);
  EXPECT_EQ(peak.workspace, 0);
}

TEST(FindPeak, InARecomputation) {
  const ParsedGraph parsed = parse(kText);
  const Peak peak = find_peak(parsed.graph, parse_schedule("3: recompute a, recompute b", parsed));
  EXPECT_EQ(peak.bytes, 100 + 40 + 10 + 10 + 7);
  EXPECT_EQ(peak.place, 3);
  EXPECT_EQ(peak.running, 1);
  EXPECT_TRUE(peak.in_recompute);
  EXPECT_EQ(peak.there, (Ids{0, 1, 3}));
  EXPECT_EQ(peak.made, 10);
}

TEST(FindPeak, InAGap) {
  const Graph graph = parse("a = f() bytes=10\nb = g(a) bytes=1 gap=5\nh(b)").graph;
  const Peak peak = find_peak(graph, empty_schedule(graph));
  EXPECT_EQ(peak.bytes, 15);
  EXPECT_EQ(peak.place, 1);
  EXPECT_EQ(peak.running, kNone);
  EXPECT_EQ(peak.there, Ids{0});
  EXPECT_EQ(peak.outside, 5);
}

TEST(FindPeak, OfNothing) {
  EXPECT_EQ(find_peak({}, empty_schedule({})).bytes, 0);
  EXPECT_EQ(values_there({}, empty_schedule({}), 0), Ids{});
}

TEST(FindPeak, AddsUpInRandomSteps) {
  int in_recompute = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    const Graph graph = random_graph(seed);
    const Schedule schedule = random_schedule(graph, seed);
    const Simulation simulation = simulate(graph, schedule);
    const Peak peak = find_peak(graph, schedule);
    EXPECT_EQ(peak.bytes, simulation.peak);
    EXPECT_EQ(peak.place, simulation.peak_place);
    EXPECT_EQ(peak.in_recompute, simulation.peak_in_recompute);
    EXPECT_EQ(peak.bytes, sum(graph, peak.there) + peak.outside + peak.made + peak.workspace) << seed;
    in_recompute += peak.in_recompute;
    for (size_t i = 0; i <= graph.ops.size(); ++i) {
      const int64_t outside = i < graph.ops.size() ? graph.ops[i].outside : graph.end_outside;
      EXPECT_EQ(sum(graph, values_there(graph, schedule, static_cast<OpId>(i))) + outside, simulation.in_use[i]);
    }
  }
  EXPECT_GT(in_recompute, 100);
}

}  // namespace
}  // namespace refrain::graph
