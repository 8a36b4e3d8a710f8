#include "graph/graph.h"

#include <gtest/gtest.h>

#include <functional>

#include "graph/random_graph.h"
#include "graph/text.h"
#include "tests/graph/support.h"

namespace refrain::graph {
namespace {

TEST(FindDefect, FindsNoneInAGoodGraph) {
  EXPECT_EQ(find_defect({}), "");
  EXPECT_EQ(find_defect(parse("source x\na = f(x)\nb = g_(a!)\nh(b)").graph), "");
}

TEST(FindDefect, FindsNoneInRandomGraphs) {
  for (uint64_t seed = 0; seed < 2000; ++seed) EXPECT_EQ(find_defect(random_graph(seed)), "") << seed;
}

/// A good graph, with one thing changed.
std::string defect_after(const std::function<void(Graph&)>& change) {
  //                     v0                  v1 op0         v2 op1               v3, v4 op2
  Graph graph = parse("source x bytes=8\na = f(x) bytes=4\nb = g_(a!)\nc, d = h(b, x) bytes=2,2\ne = k_(d!, c)").graph;
  EXPECT_EQ(find_defect(graph), "");
  change(graph);
  return find_defect(graph);
}

TEST(FindDefect, NamesWhatIsWrong) {
  const auto expect = [](const std::string& found, const std::function<void(Graph&)>& change) {
    EXPECT_TRUE(contains(defect_after(change), found));
  };
  expect("value 1: found bytes -1", [](Graph& g) { g.values[1].bytes = -1; });
  expect("operator 0 'f': found ns -5", [](Graph& g) { g.ops[0].ns = -5; });
  expect("operator 0 'f': found outside -1", [](Graph& g) { g.ops[0].outside = -1; });
  expect("operator 0 'f': found gap -1", [](Graph& g) { g.ops[0].gap = -1; });
  expect("found workspace 9007199254740993", [](Graph& g) { g.ops[0].workspace = (int64_t{1} << 53) + 1; });
  expect("found end_gap -2", [](Graph& g) { g.end_gap = -2; });
  expect("found end_outside -2", [](Graph& g) { g.end_outside = -2; });
  expect("value 0: found a source that is evictable", [](Graph& g) { g.values[0].evictable = true; });
  expect("value 0: found birth -1", [](Graph& g) { g.values[0].birth = -1; });
  expect("value 0: found birth 5", [](Graph& g) { g.values[0].birth = 5; });
  expect("value 0: found death 5", [](Graph& g) { g.values[0].death = 5; });
  expect("value 5: found death 3", [](Graph& g) { g.values[5].death = 3; });
  expect("value 1: found producer 4; expected -1", [](Graph& g) { g.values[1].producer = 4; });
  expect("value 1: found producer -2", [](Graph& g) { g.values[1].producer = -2; });
  expect("value 2: claims to be output 1 of operator 1", [](Graph& g) { g.values[2].output = 1; });
  expect("value 2: claims to be output -1 of operator 1", [](Graph& g) { g.values[2].output = -1; });
  expect("value 2: found output 0 of operator 0 after output 0 of operator 0",
         [](Graph& g) { g.values[2].producer = 0; });
  expect("value 4: found output 0 of operator 2 after output 1 of operator 2", [](Graph& g) {
    std::swap(g.values[3].output, g.values[4].output);
    std::swap(g.ops[2].outputs[0], g.ops[2].outputs[1]);
  });
  expect("operator 2 'h': output 2 is value 0", [](Graph& g) { g.ops[2].outputs.push_back(0); });
  expect("operator 0 'f': found output 6", [](Graph& g) { g.ops[0].outputs.push_back(6); });
  expect("operator 1 'g_': found input 6", [](Graph& g) { g.ops[1].inputs = {6}; });
  expect("operator 1 'g_': found input -1", [](Graph& g) { g.ops[1].inputs = {kNone}; });
  expect("operator 2 'h': it reads value 2 twice", [](Graph& g) { g.ops[2].inputs = {2, 0, 2}; });
  expect("operator 2 'h': it reads value 1, which is resident from 1 until 2", [](Graph& g) { g.ops[2].inputs = {1}; });
  expect("operator 1 'g_': it reads value 2, which is resident from 2", [](Graph& g) { g.ops[1].inputs = {2}; });
  expect("operator 2 'h': it reads value 0, which is resident from 0 until 2", [](Graph& g) { g.values[0].death = 2; });
  expect("value 2: found that it overwrites 6", [](Graph& g) { g.values[2].overwrites = 6; });
  expect("value 2: found that it overwrites 2", [](Graph& g) { g.values[2].overwrites = 2; });
  expect("value 2: found that it overwrites -2", [](Graph& g) { g.values[2].overwrites = -2; });
  expect("value 2: found 3 bytes, and 4 of value 1", [](Graph& g) { g.values[2].bytes = 3; });
  expect("value 2: it overwrites value 1, resident from 1 until 3", [](Graph& g) { g.values[1].death = 3; });
  expect("value 4: it overwrites value 3, resident from 3 until 4", [](Graph& g) { g.values[4].overwrites = 3; });
  expect("value 6: it overwrites value 4, as does value 5", [](Graph& g) {
    g.values.push_back(g.values[5]);
    g.values[6].producer = kNone;
    g.values[6].evictable = false;
    g.values[6].birth = 4;
  });
}

TEST(FindDefect, RefusesBytesThatCouldOverflow) {
  Graph graph;
  graph.values.resize(200);
  for (Value& value : graph.values) value.bytes = int64_t{1} << 53;
  EXPECT_TRUE(contains(find_defect(graph), "value 128: all values up to it have"));
  Graph slow;
  slow.ops.resize(200);
  for (Op& op : slow.ops) op.ns = int64_t{1} << 53;
  EXPECT_TRUE(contains(find_defect(slow), "operator 128 '': all operators up to it take"));
}

}  // namespace
}  // namespace refrain::graph
