#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "apps/report/line_chart.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"
#include "apps/report/strategies.h"

namespace refrain::report {
namespace {

struct DepthRow {
  int64_t depth = 0;
  std::vector<Strategy> strategies;
};

/// A line for each strategy, in the order of first mention; the first is the baseline.
std::vector<Line> lines(const std::vector<DepthRow>& rows, const auto& value, const auto& tooltip) {
  std::vector<Line> list;
  for (const auto& row : rows) {
    for (const auto& strategy : row.strategies) {
      auto line = std::find_if(list.begin(), list.end(), [&](const Line& l) { return l.name == strategy.name; });
      if (line == list.end()) {
        const size_t i = list.size();
        list.push_back({.name = strategy.name,
                        .points = {},
                        .tooltips = {},
                        .colour = i,
                        .css = i == 0 ? "dashed" : "",
                        .shape = i});
        line = list.end() - 1;
      }
      line->points.emplace_back(static_cast<double>(row.depth), value(strategy));
      line->tooltips.push_back(fmt::format("{} at depth {}: {}", strategy.name, row.depth, tooltip(strategy)));
    }
  }
  return list;
}

Axis depth_axis(const std::vector<DepthRow>& rows) {
  std::vector<double> depths;
  for (const auto& row : rows) depths.push_back(static_cast<double>(row.depth));
  return Axis::at_values(std::move(depths), "depth, layers");
}

/// With the unit of the largest, for a chart of its own.
LineChart bytes_chart(const std::vector<DepthRow>& rows, const char* name, int64_t Strategy::*bytes) {
  int64_t largest = 0;
  for (const auto& row : rows) {
    for (const auto& strategy : row.strategies) largest = std::max(largest, strategy.*bytes);
  }
  const ByteUnit unit = unit_for(largest);
  return {.x = depth_axis(rows),
          .y = Axis::from_zero(unit.of(largest), 5, fmt::format("{}, {}", name, unit.name)),
          .lines = lines(
              rows, [&](const Strategy& s) { return unit.of(s.*bytes); },
              [&](const Strategy& s) { return grouped(s.*bytes) + " bytes"; }),
          .references = {},
          .marks = {},
          .height = 220};
}

std::vector<LineChart> charts(const std::vector<DepthRow>& rows) {
  double slowest = 0;
  for (const auto& row : rows) {
    for (const auto& strategy : row.strategies) slowest = std::max(slowest, strategy.step_ms);
  }
  return {bytes_chart(rows, "after forward", &Strategy::after_forward_bytes),
          bytes_chart(rows, "peak", &Strategy::peak_bytes),
          {.x = depth_axis(rows),
           .y = Axis::from_zero(slowest, 4, "step, ms (median)"),
           .lines = lines(
               rows, [](const Strategy& s) { return s.step_ms; },
               [](const Strategy& s) { return exact(s.step_ms) + " ms"; }),
           .references = {},
           .marks = {},
           .height = 180}};
}

/// Of the level after forward, not of the peak: gradients, the same under every strategy, may be most of that.
std::string finding(const DepthRow& deepest) {
  const auto& plain = deepest.strategies.front();
  const auto& best = *std::min_element(
      deepest.strategies.begin(), deepest.strategies.end(),
      [](const Strategy& a, const Strategy& b) { return a.after_forward_bytes < b.after_forward_bytes; });
  const ByteUnit unit = unit_for(plain.after_forward_bytes);
  std::string text = fmt::format("At depth {}, {} holds {} after forward", count(deepest.depth).html(),
                                 tagged("b", plain.name), with_unit(plain.after_forward_bytes, unit));
  if (&best != &plain) {
    text += fmt::format(
        ", {} {}: {} less", tagged("b", best.name), with_unit(best.after_forward_bytes, unit),
        saving(static_cast<double>(best.after_forward_bytes), static_cast<double>(plain.after_forward_bytes)).html());
  }
  return fmt::format("<p class=\"finding\">{}.</p>\n", text);
}

}  // namespace

std::string depths_section(const Field& document, const Place& place) {
  std::vector<DepthRow> rows;
  for (const Field& item : document["rows"].items()) {
    rows.push_back({item["depth"].count(), read_strategies(item["strategies"])});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const DepthRow& a, const DepthRow& b) { return a.depth < b.depth; });
  std::erase_if(rows, [](const DepthRow& row) { return row.strategies.empty(); });
  if (rows.empty()) return "<p class=\"finding\">No depths were measured.</p>\n";

  std::string out = finding(rows.back());
  out +=
      figure(place.id + "-depths", "Memory and time by depth",
             "Lines over the depth of the model, one for each strategy: level after forward, peak, and time of a step. "
             "The tables after the chart have the numbers.",
             [&](Svg& svg) { draw_line_charts(svg, charts(rows)); });
  std::string tables;
  for (const auto& row : rows)
    tables +=
        fmt::format("<h3>Depth {}</h3>\n", count(row.depth).html()) + strategy_table("Strategies", row.strategies);
  return out + details("All depths in numbers", tables);
}

}  // namespace refrain::report
