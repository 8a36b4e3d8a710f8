#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "apps/report/kinds.h"
#include "apps/report/levels.h"
#include "apps/report/markup.h"
#include "apps/report/numbers.h"
#include "apps/report/pareto.h"
#include "apps/report/scale.h"

namespace refrain::report {
namespace {

using Ticks = std::vector<double>;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

TEST(RoundTicks, AreRoundAndEnclose) {
  EXPECT_EQ(round_ticks(0, 428, 6), (Ticks{0, 100, 200, 300, 400, 500}));
  EXPECT_EQ(round_ticks(812, 1079, 7), (Ticks{800, 850, 900, 950, 1000, 1050, 1100}));
  EXPECT_EQ(round_ticks(0, 500, 5), (Ticks{0, 100, 200, 300, 400, 500}));
  EXPECT_EQ(round_ticks(-30, 40, 4), (Ticks{-40, -20, 0, 20, 40}));
}

TEST(RoundTicks, AreTwoAtLeastEvenForOneNumber) {
  EXPECT_EQ(round_ticks(0, 0, 5).front(), 0);
  for (const double value : {0.0, 1.0, -7.0, 1e-9, 3e18, 812.41}) {
    const Ticks ticks = round_ticks(value, value, 5);
    ASSERT_GE(ticks.size(), 2u) << value;
    EXPECT_LE(ticks.front(), value);
    EXPECT_GE(ticks.back(), value);
  }
}

TEST(RoundTicks, HoldForRandomRanges) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> exponent(-6, 18), part(0, 1);
  for (int i = 0; i < 5000; ++i) {
    const double high = std::pow(10, exponent(random)), low = part(random) * high;
    const int about = 1 + static_cast<int>(random() % 9);
    const Ticks ticks = round_ticks(low, high, about);
    const double step = ticks[1] - ticks[0], slack = 1e-6 * step;
    ASSERT_GE(ticks.size(), 2u);
    ASSERT_LE(ticks.size(), static_cast<size_t>(about) + 3) << low << " " << high;
    ASSERT_LE(ticks.front(), low + slack);
    ASSERT_GE(ticks.back(), high - slack);
    const double digit = step / std::pow(10, std::floor(std::log10(step) + 1e-9));
    ASSERT_TRUE(std::abs(digit - 1) < 1e-3 || std::abs(digit - 2) < 1e-3 || std::abs(digit - 5) < 1e-3) << step;
  }
}

TEST(Axis, OfValuesIsLogarithmicOverManyOfThem) {
  EXPECT_TRUE(Axis::at_values({64, 1, 8, 8}, "").is_log);
  EXPECT_EQ(Axis::at_values({64, 1, 8, 8}, "").ticks, (Ticks{1, 8, 64}));
  EXPECT_FALSE(Axis::at_values({10, 20, 80}, "").is_log);
  EXPECT_FALSE(Axis::at_values({0, 80}, "").is_log);
  const Axis one = Axis::at_values({5}, "");
  EXPECT_LT(one.low, 5);
  EXPECT_GT(one.high, 5);
}

TEST(Axis, WithinKeepsItsEnds) {
  const Axis axis = Axis::within(3, 870, 8, "ms");
  EXPECT_EQ(axis.low, 3);
  EXPECT_EQ(axis.high, 870);
  EXPECT_EQ(axis.ticks, (Ticks{200, 400, 600, 800}));
}

TEST(Spread, LeavesWhatIsApartAndPartsWhatIsNot) {
  EXPECT_EQ(spread({}, 10, 0, 100), Ticks{});
  EXPECT_EQ(spread({80, 20}, 10, 0, 100), (Ticks{80, 20}));
  EXPECT_EQ(spread({50, 50}, 10, 0, 100), (Ticks{45, 55}));
  EXPECT_EQ(spread({0, 0}, 10, 0, 100), (Ticks{0, 10}));
  EXPECT_EQ(spread({100, 100}, 10, 0, 100), (Ticks{90, 100}));
}

TEST(Spread, KeepsDistanceOrderAndBounds) {
  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) {
    Ticks wanted(1 + random() % 10);
    for (double& w : wanted) w = static_cast<double>(random() % 100);
    const Ticks at = spread(wanted, 9, 0, 100);
    for (size_t a = 0; a < at.size(); ++a) {
      EXPECT_GE(at[a], -1e-9);
      EXPECT_LE(at[a], 100 + 1e-9);
      for (size_t b = 0; b < a; ++b) {
        EXPECT_GE(std::abs(at[a] - at[b]), 9 - 1e-9);
        EXPECT_TRUE(wanted[a] == wanted[b] || (at[a] < at[b]) == (wanted[a] < wanted[b]));
      }
    }
  }
}

TEST(ParetoFront, IsWhatNothingBeats) {
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    std::vector<Cost> costs(random() % 13);
    for (Cost& cost : costs) cost = {static_cast<double>(random() % 8), static_cast<double>(random() % 8)};
    std::vector<size_t> expected;
    for (size_t i = 0; i < costs.size(); ++i) {
      const bool is_beaten = std::any_of(costs.begin(), costs.end(), [&](const Cost& other) {
        return other.memory <= costs[i].memory && other.time <= costs[i].time &&
               (other.memory < costs[i].memory || other.time < costs[i].time);
      });
      if (!is_beaten) expected.push_back(i);
    }
    auto front = pareto_front(costs);
    EXPECT_TRUE(std::is_sorted(front.begin(), front.end(),
                               [&](size_t a, size_t b) { return costs[a].memory < costs[b].memory; }));
    std::sort(front.begin(), front.end());
    EXPECT_EQ(front, expected);
  }
}

TEST(Numbers, AreInTheUnitThatFits) {
  EXPECT_STREQ(unit_for(0).name, "MiB");
  EXPECT_STREQ(unit_for(900).name, "B");
  EXPECT_STREQ(unit_for(1 << 19).name, "KiB");
  EXPECT_STREQ(unit_for(1 << 20).name, "MiB");
  EXPECT_STREQ(unit_for(99'999ll << 20).name, "MiB");
  EXPECT_STREQ(unit_for(100'000ll << 20).name, "GiB");
  EXPECT_STREQ(unit_for(kMost).name, "PiB");
  const Number number = number_of(15240200, unit_for(15240200));
  EXPECT_EQ(number.shown, "14.53");
  EXPECT_EQ(number.exact, "15240200");
  EXPECT_EQ(number.tooltip, "15,240,200 bytes");
  EXPECT_EQ(number_of(kMost, unit_for(kMost)).shown, "8,192");
}

TEST(Numbers, AreGroupedAndSigned) {
  EXPECT_EQ(grouped(int64_t{0}), "0");
  EXPECT_EQ(grouped(int64_t{999}), "999");
  EXPECT_EQ(grouped(int64_t{-1234567}), "−1,234,567");
  EXPECT_EQ(grouped(std::numeric_limits<int64_t>::min()), "−9,223,372,036,854,775,808");
  EXPECT_EQ(grouped(1234.56, 1), "1,234.6");
  EXPECT_EQ(grouped(-0.04, 1), "0.0");
}

TEST(Numbers, OfNothingAreADash) {
  EXPECT_EQ(percent(3, 0).html(), "–");
  EXPECT_EQ(saving(1, 4).shown, "75 %");
  EXPECT_EQ(percent(-3, 100).shown, "−3.0 %");
  EXPECT_EQ(percent(1, 4).html(), "<data class=\"ratio\" value=\"1/4\">25 %</data>");
}

TEST(Escape, LeavesNothingThatCouldBeMarkup) {
  EXPECT_EQ(escape("<script>\"&'</script>"), "&lt;script&gt;&quot;&amp;&#39;&lt;/script&gt;");
  EXPECT_EQ(escape("naïve √ 層"), "naïve √ 層");
  EXPECT_EQ(escape(std::string_view("a\0b\x7F\x1B", 5)),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(escape("\xC0\xBC\xFF\xE2\x82"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(escape("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Fit, CutsBetweenCharacters) {
  EXPECT_EQ(fit("per_block", 200, 12), "per_block");
  const std::string cut = fit("層層層層層層層層", 50, 12);
  EXPECT_LT(cut.size(), 24u);
  EXPECT_EQ(escape(cut), cut);
  EXPECT_TRUE(cut.ends_with("…"));
}

nlohmann::json timeline_levels(nlohmann::json points, nlohmann::json kinds) {
  return {{"points", std::move(points)}, {"kinds", std::move(kinds)}};
}

TEST(Levels, KeepEveryRowWhenKindsHaveTheTimesOfPoints) {
  // two levels at one time: freed and allocated within a microsecond
  const auto document = timeline_levels({{0, 1}, {5, 9}, {5, 2}}, {{"temporary", {{0, 1}, {5, 9}, {5, 2}}}});
  const auto levels = read_levels(Field(document, "d"));
  ASSERT_EQ(levels.size(), 3u);
  EXPECT_EQ(levels[1].by_kind[*kind_index("temporary")], 9);
}

TEST(Levels, HoldUntilTheNextPointOtherwise) {
  const auto document = timeline_levels({{0, 1}, {10, 4}}, {{"input", {{0, 1}}}, {"gradient", {{10, 3}, {20, 0}}}});
  const auto levels = read_levels(Field(document, "d"));
  ASSERT_EQ(levels.size(), 3u);
  EXPECT_EQ(levels[1].by_kind[*kind_index("input")], 1);
  EXPECT_EQ(levels[1].by_kind[*kind_index("gradient")], 3);
  EXPECT_EQ(levels[0].by_kind[*kind_index("gradient")], 0);
}

TEST(ThinOut, KeepsTheHighestAndTheLowestOfAllSpans) {
  std::mt19937 random(17);
  std::vector<Level> levels;
  for (int i = 0; i < 5000; ++i)
    levels.push_back({static_cast<double>(i), {}, static_cast<int64_t>(random() % 100000)});
  const auto thin = thin_out(levels, 100);
  EXPECT_LE(thin.size(), 202u);
  const auto less = [](const Level& a, const Level& b) { return a.total < b.total; };
  EXPECT_EQ(std::max_element(thin.begin(), thin.end(), less)->total,
            std::max_element(levels.begin(), levels.end(), less)->total);
  EXPECT_EQ(std::min_element(thin.begin(), thin.end(), less)->total,
            std::min_element(levels.begin(), levels.end(), less)->total);
  EXPECT_TRUE(std::is_sorted(thin.begin(), thin.end(), [](const Level& a, const Level& b) { return a.t_us < b.t_us; }));
  EXPECT_EQ(thin_out({}, 100).size(), 0u);
}

TEST(HighestWithin, CountsTheLevelThatHoldsAtTheBeginning) {
  const std::vector<Level> levels{{0, {}, 5}, {10, {}, 2}, {20, {}, 7}};
  EXPECT_EQ(highest_within(levels, 5, 15), 5);
  EXPECT_EQ(highest_within(levels, 10, 15), 2);
  EXPECT_EQ(highest_within(levels, 10, 20), 7);
  EXPECT_EQ(highest_within(levels, 30, 40), 7);
  EXPECT_EQ(highest_within({}, 0, 1), 0);
}

}  // namespace
}  // namespace refrain::report
