#include "graph/families.h"

#include <gtest/gtest.h>

#include "graph/schedule.h"
#include "graph/text.h"

namespace refrain::graph {
namespace {

TEST(Families, HaveAboutTheSizeThatWasAskedFor) {
  for (const Family family : kFamilies)
    for (const int32_t ops : {100, 1000, 10'000}) {
      const Graph graph = make_family(family, ops);
      EXPECT_EQ(find_defect(graph), "") << family_name(family) << " " << ops;
      EXPECT_NEAR(static_cast<double>(graph.ops.size()), ops, ops * 0.2 + 20) << family_name(family);
    }
}

TEST(Families, AreRepeatable) {
  for (const Family family : kFamilies) {
    EXPECT_EQ(to_text(make_family(family, 200, 7)), to_text(make_family(family, 200, 7)));
    EXPECT_NE(to_text(make_family(family, 200, 7)), to_text(make_family(family, 200, 8)));
  }
}

TEST(Families, PeakAfterForward) {
  for (const Family family : kFamilies) {
    const Graph graph = make_family(family, 500);
    const Simulation plain = simulate(graph, empty_schedule(graph));
    EXPECT_EQ(plain.error, "");
    EXPECT_GT(plain.peak, 2 * plain.in_use.front()) << family_name(family);
    EXPECT_GT(plain.peak_place, static_cast<OpId>(graph.ops.size() / 4)) << family_name(family);
    EXPECT_LT(plain.peak_place, static_cast<OpId>(graph.ops.size() * 3 / 4)) << family_name(family);
  }
}

}  // namespace
}  // namespace refrain::graph
