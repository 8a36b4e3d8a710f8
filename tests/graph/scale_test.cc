#include "graph/scale.h"

#include <gtest/gtest.h>

#include "graph/random_graph.h"
#include "graph/text.h"
#include "refrain/error.h"
#include "tests/graph/support.h"

namespace refrain::graph {
namespace {

/// A step whose numbers are affine in the batch.
Graph step(int64_t batch) {
  return parse("source w bytes=5000\nsource x bytes=" + std::to_string(8 * batch) +
               "\na = f(x, w) ns=" + std::to_string(50 + 3 * batch) + " bytes=" + std::to_string(64 + 128 * batch) +
               " ws=" + std::to_string(100 - 7 * batch) + "\nb = g_(a!) outside=" + std::to_string(2 * batch) +
               "\nh(b)\nend outside=4 gap=" + std::to_string(4 + batch))
      .graph;
}

TEST(Scale, IsExactForAffineSteps) {
  for (const int64_t batch : {1, 2, 3, 7, 100})
    EXPECT_EQ(to_text(scale({step(4), 4}, {step(16), 16}, batch)), to_text(step(batch))) << batch;
  EXPECT_EQ(to_text(scale({step(16), 16}, {step(4), 4}, 9)), to_text(step(9)));
}

TEST(Scale, OfRandomSteps) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Graph base = random_graph(seed);
    const auto at = [&](int64_t batch) {
      Graph graph = base;
      for (Value& value : graph.values) value.bytes = 11 + value.bytes * batch;
      for (Op& op : graph.ops) {
        op.ns = op.ns * batch + 2;
        op.workspace = op.workspace * batch - 1;
        op.outside += batch;
        op.gap += 2 * batch;
      }
      return graph;
    };
    const Graph scaled = scale({at(3), 3}, {at(5), 5}, 17);
    EXPECT_EQ(to_text(scaled), to_text(at(17)));
    const ScaleError error = check(scaled, at(17));
    EXPECT_EQ(error.worst_peak, 0);
    EXPECT_EQ(error.worst_value, 0);
  }
}

TEST(Scale, RoundsToTheNearest) {
  const auto with = [](int64_t bytes) { return parse("source x bytes=" + std::to_string(bytes)).graph; };
  const auto bytes = [&](int64_t at0, int64_t at10, int64_t batch) {
    return scale({with(at0), 1}, {with(at10), 11}, batch).values[0].bytes;
  };
  EXPECT_EQ(bytes(0, 10, 4), 3);
  EXPECT_EQ(bytes(0, 1, 5), 0);
  EXPECT_EQ(bytes(0, 1, 7), 1);
  EXPECT_EQ(bytes(10, 0, 5), 6);
  EXPECT_EQ(bytes(10, 9, 5), 10);
  EXPECT_EQ(bytes(10, 9, 7), 9);
  EXPECT_EQ(bytes(10, 0, 100), 0);  // not below
}

TEST(Scale, RefusesDifferentSteps) {
  const auto refusal = [](const std::string& a, const std::string& b) -> std::string {
    const Graph one = parse(a).graph, other = parse(b).graph;
    try {
      scale({one, 1}, {other, 2}, 3);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_TRUE(contains(refusal("f()\ng()", "f()\nh()"), "operator 1 is 'g' and 'h'"));
  EXPECT_TRUE(contains(refusal("f()\ng()", "f()"), "operator 1 'g' is in one only"));
  EXPECT_TRUE(contains(refusal("f()\ng() scope=a", "f()\ng() scope=b"), "operator 1 is 'g' of 'a' and of 'b'"));
  EXPECT_TRUE(
      contains(refusal("source x\nsource y\nf(x)", "source x\nsource y\nf(y)"), "operator 0 is 'f' with other inputs"));
  EXPECT_TRUE(contains(refusal("a = f()", "f()"), "operator 0 is 'f' with other outputs"));
  EXPECT_TRUE(contains(refusal("a = f()\ng(a)\nh()", "a = f()\ng(a)\nh(a)"),
                       "operator 0 is 'f', whose output 0 has another live range (to 2 and to 3)"));
  EXPECT_TRUE(contains(refusal("f() once", "f()"), "operator 0 is 'f', one of which is once"));
  EXPECT_TRUE(contains(refusal("f()\nsource x death=1", "f()\nsource x birth=0"), "source 0 has another live range"));
  EXPECT_TRUE(contains(refusal("source x\nf()", "f()"), "there are 1 and 0 values"));
}

TEST(Scale, RefusesBatchesThatSayNothing) {
  const Graph graph = step(1);
  EXPECT_THROW(scale({graph, 4}, {graph, 4}, 8), InvalidArgument);
  EXPECT_THROW(scale({graph, 0}, {graph, 4}, 8), InvalidArgument);
  EXPECT_THROW(scale({graph, 2}, {graph, 4}, 0), InvalidArgument);
  EXPECT_THROW(scale({step(1), 1}, {step(1000), 1000}, int64_t{1} << 60), InvalidArgument);
}

TEST(ScaleCheck, SaysHowFarItIsAndWhere) {
  const Graph measured = parse("source w bytes=100000\na = f(w) bytes=10000\nb = g(a) bytes=20000\nh(b)").graph;
  Graph scaled = measured;
  scaled.values[1].bytes = 11000;
  scaled.values[2].bytes = 16000;
  const ScaleError error = check(scaled, measured);
  EXPECT_DOUBLE_EQ(error.worst_value, 0.2);
  EXPECT_EQ(error.value, 2);
  EXPECT_DOUBLE_EQ(error.worst_peak, 4000.0 / 120000);
  EXPECT_EQ(error.place, 3);
  scaled.ops[0].name = "k";
  EXPECT_THROW(check(scaled, measured), InvalidArgument);
}

}  // namespace
}  // namespace refrain::graph
