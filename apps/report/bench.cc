#include <fmt/format.h>

#include <algorithm>

#include "apps/report/markup.h"
#include "apps/report/scatter.h"
#include "apps/report/sections.h"
#include "apps/report/strategies.h"

namespace refrain::report {
namespace {

std::string finding(const std::vector<Strategy>& strategies, const ByteUnit& unit) {
  const auto& plain = strategies.front();
  const auto& best = strategies[lowest_peak(strategies)];
  if (&best == &plain) {
    return fmt::format("{} peaks at {}; none of the others is lower.", tagged("b", plain.name),
                       with_unit(plain.peak_bytes, unit));
  }
  return fmt::format("{} has the lowest peak, {}: {} less than {}, {}. It {}.", tagged("b", best.name),
                     with_unit(best.peak_bytes, unit),
                     saving(static_cast<double>(best.peak_bytes), static_cast<double>(plain.peak_bytes)).html(),
                     tagged("b", plain.name), with_unit(plain.peak_bytes, unit),
                     adds_to_the_step(best.added_ms, percent(best.added_ms, plain.step_ms)));
}

std::string scatter(const std::vector<Strategy>& strategies, const ByteUnit& unit, const Place& place) {
  std::vector<ScatterPoint> points;
  double least = strategies.front().step_ms, most = least;
  for (const auto& strategy : strategies) {
    points.push_back({.name = strategy.name,
                      .memory = unit.of(strategy.peak_bytes),
                      .time = strategy.step_ms,
                      .tooltip = fmt::format("{}: peak {} bytes, step {} ms", strategy.name,
                                             grouped(strategy.peak_bytes), exact(strategy.step_ms)),
                      .is_plain = &strategy == &strategies.front()});
    least = std::min(least, strategy.step_ms);
    most = std::max(most, strategy.step_ms);
  }
  std::string names;
  for (const auto& point : points) names += (names.empty() ? "" : "; ") + point.tooltip;
  return figure(place.id + "-scatter", "Peak memory and time of a step",
                "Strategies as points, lower left is better. " + names + ".",
                [&](Svg& svg) {
                  draw_scatter(
                      svg, points, Axis::around(least, most, svg.is_narrow() ? 4 : 7, "step, ms (median)"),
                      Axis::from_zero(unit.of(largest_bytes(strategies)), 6, fmt::format("peak, {}", unit.name)));
                }) +
         "<p class=\"note\">Filled: the Pareto front; no strategy has both less memory and less time. Square: the baseline. "
         "Bytes are over the level before the step.</p>\n";
}

}  // namespace

std::string bench_section(const Field& document, const Place& place) {
  const auto strategies = read_strategies(document["strategies"]);
  if (strategies.empty()) return "<p class=\"finding\">No strategies were measured.</p>\n";
  const ByteUnit unit = unit_for(largest_bytes(strategies));
  std::string out = fmt::format("<p class=\"finding\">{}</p>\n", finding(strategies, unit));
  const bool is_unequal =
      std::any_of(strategies.begin(), strategies.end(), [](const auto& s) { return !s.is_bit_equal; });
  if (is_unequal)
    out += "<p class=\"warning\">Not all strategies are bit-equal to the baseline: see the last column.</p>\n";
  out += strategy_table("Strategies: memory and time of a training step. Bar: peak, and in it the level after forward.",
                        strategies);
  return out + scatter(strategies, unit, place);
}

}  // namespace refrain::report
