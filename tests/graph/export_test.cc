#include "graph/export.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "graph/random_graph.h"
#include "graph/text.h"
#include "tests/graph/support.h"

namespace refrain::graph {
namespace {

using Json = nlohmann::json;

TEST(Dot, IsAsExpected) {
  const ParsedGraph parsed = parse(R"(
    model "a \"b\""
    source x bytes=2048
    a = f(x) scope=net.one bytes=1024
    b = g_(a!) scope=net.two
    c = h(b) bytes=7 backward
    k(x) scope=net.one
    l(c, x))");
  const Schedule schedule = parse_schedule(
      "2: drop b, recompute a, recompute_in_place b\n3: drop c\n4: recompute a, recompute_in_place b, recompute c",
      parsed);
  ASSERT_EQ(simulate(parsed.graph, schedule).error, "");
  EXPECT_EQ(to_dot(parsed.graph, &schedule), R"(digraph step {
  label="a \"b\"";
  node [shape=box, fontname="sans-serif"];
  o2 [label="h, 2 times", style=rounded];
  o4 [label="l"];
  subgraph cluster0 {
    label="net";
    subgraph cluster1 {
      label="one";
      o0 [label="f, 3 times"];
      o3 [label="k"];
    }
    subgraph cluster2 {
      label="two";
      o1 [label="g_, 3 times"];
    }
  }
  v0 [shape=ellipse, style=filled, fillcolor="#d9dde1", label="2.0 KiB"];
  v1 [shape=ellipse, style=filled, fillcolor="#e9b13f", label="1.0 KiB"];
  v2 [shape=ellipse, style=filled, fillcolor="#e9b13f", label="1.0 KiB"];
  v1 -> v2 [style=dashed];
  v3 [shape=ellipse, style=filled, fillcolor="#e9b13f", label="7 B"];
  v0 -> o0;
  o0 -> v1;
  v1 -> o1;
  o1 -> v2;
  v2 -> o2;
  o2 -> v3;
  v0 -> o3;
  v3 -> o4;
  v0 -> o4;
}
)");
  EXPECT_TRUE(contains(to_dot(parsed.graph), "v3 [shape=ellipse, style=filled, fillcolor=\"#8fb4d3\""));
}

TEST(Dot, ClosesAllClusters) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Graph graph = random_graph(seed);
    for (size_t i = 0; i < graph.ops.size(); ++i)
      for (size_t k = 0; k < (i * seed) % 13; ++k)
        graph.ops[i].scope += (k == 0 ? "" : ".") + std::to_string((i * seed + k) % 3);
    const std::string dot = to_dot(graph);
    EXPECT_EQ(std::count(dot.begin(), dot.end(), '{'), std::count(dot.begin(), dot.end(), '}')) << dot;
  }
}

TEST(ChromeTrace, HasEveryRunAndTheBytesInUse) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Graph graph = random_graph(seed);
    const Schedule schedule = random_schedule(graph, seed);
    const Simulation simulation = simulate(graph, schedule);
    const Json trace = Json::parse(to_chrome_trace(graph, schedule));
    int64_t ops = 0, again = 0, counters = 0;
    double time = 0, again_time = 0;
    for (const Json& event : trace["traceEvents"]) {
      if (event["ph"] == "M") continue;
      EXPECT_NEAR(event["ts"].get<double>(), time, 1e-6);
      if (event["ph"] == "X") {
        time += event["dur"].get<double>();
        (event["tid"] == 1 ? ops : again) += 1;
        if (event["tid"] == 2) again_time += event["dur"].get<double>();
      } else if (event["ph"] == "C") {
        EXPECT_EQ(event["args"]["at start"], simulation.in_use[static_cast<size_t>(counters)]);
        EXPECT_EQ(event["args"]["most"], simulation.peaks[static_cast<size_t>(counters++)]);
      }
    }
    EXPECT_EQ(ops, static_cast<int64_t>(graph.ops.size()));
    EXPECT_EQ(again, simulation.recomputed_ops);
    EXPECT_NEAR(again_time * 1000, static_cast<double>(simulation.added_ns), 1e-3);
    EXPECT_EQ(counters, ops + 1);
  }
}

TEST(ChromeTrace, NamesAndDrops) {
  const ParsedGraph parsed = parse("a = \"x \\\"y\\\"\"() ns=1234567 bytes=5 scope=m\ng(a)\nh()");
  const Json trace = Json::parse(to_chrome_trace(parsed.graph, parse_schedule("1: drop a, recompute a", parsed)));
  const auto& events = trace["traceEvents"];
  EXPECT_EQ(events[0]["args"]["name"], "operators");
  EXPECT_EQ(events[1]["args"]["name"], "recomputed");
  EXPECT_EQ(events[3]["name"], "x \"y\"");
  EXPECT_EQ(events[3]["dur"], 1234.567);
  EXPECT_EQ(events[3]["args"]["scope"], "m");
  EXPECT_EQ(events[4]["name"], "drop");
  EXPECT_EQ(events[4]["args"]["bytes"], 5);
  EXPECT_EQ(events[5]["tid"], 2);
}

}  // namespace
}  // namespace refrain::graph
