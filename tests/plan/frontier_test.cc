#include "plan/frontier.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "graph/families.h"

namespace refrain::plan {
namespace {

void expect_unpacks(const Stays& stays) {
  const auto again = PackedStays(stays).unpack();
  ASSERT_EQ(again.size(), stays.size());
  for (size_t v = 0; v < stays.size(); ++v) {
    ASSERT_EQ(again[v].size(), stays[v].size()) << v;
    for (size_t k = 0; k < stays[v].size(); ++k) {
      ASSERT_EQ(again[v][k].from, stays[v][k].from) << v;
      ASSERT_EQ(again[v][k].to, stays[v][k].to) << v;
    }
  }
}

TEST(PackedStays, UnpacksWhatWasPacked) {
  constexpr OpId kLargest = std::numeric_limits<OpId>::max();
  expect_unpacks({});
  expect_unpacks({{}, {}});
  expect_unpacks({{{0, kLargest}}, {{kLargest, 0}}, {}, {{0, 63}, {64, 128}, {5, 5}}, {{0, 0}}});
  std::mt19937_64 dice(1);
  for (int i = 0; i < 100; ++i) {
    Stays stays(dice() % 50);
    for (auto& of_value : stays)
      for (size_t k = dice() % 300 == 0 ? 200 : dice() % 4; k > 0; --k) {
        const auto number = [&] { return static_cast<OpId>(dice() % (uint64_t{1} << (dice() % 31))); };
        of_value.push_back({number(), number()});
      }
    expect_unpacks(stays);
  }
}

TEST(PackedStays, TakesFewBytesAValue) {
  const auto graph = graph::make_transformer(24);
  const Problem problem(graph);
  const auto stays = State(problem).stays();
  expect_unpacks(stays);
  EXPECT_LT(PackedStays(stays).bytes(), 6 * stays.size());
}

}  // namespace
}  // namespace refrain::plan
