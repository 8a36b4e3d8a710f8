#include "apps/report/line_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/report/markup.h"

namespace refrain::report {
namespace {

constexpr size_t kLineColours = 6;

/// A label that wants to stand beside something at `wanted`.
struct EndLabel {
  std::string name;
  double wanted;
  double from;  ///< x of what it names
  std::string css;
};

size_t rows_of_refused(const LineChart& chart) {
  return static_cast<size_t>(
      std::count_if(chart.lines.begin(), chart.lines.end(), [](const Line& line) { return !line.refused.empty(); }));
}

double label_column(const Svg& svg, const std::vector<LineChart>& charts) {
  double widest = 0;
  for (const auto& chart : charts) {
    for (const auto& line : chart.lines)
      widest = std::max({widest, line.is_labelled ? text_width(line.name, kFontSize) : 0,
                         line.refused.empty() ? 0 : text_width(line.refused_name, kFontSize)});
    for (const auto& reference : chart.references) widest = std::max(widest, text_width(reference.name, kFontSize));
  }
  return std::min(widest, svg.is_narrow() ? 84.0 : 190.0);
}

void draw_labels(Svg& svg, const std::vector<EndLabel>& labels, double x, double width, double top, double bottom) {
  std::vector<double> wanted;
  for (const auto& label : labels) wanted.push_back(label.wanted);
  const double gap =
      std::min(kLine - 1, labels.size() < 2 ? kLine : (bottom - top + 12) / static_cast<double>(labels.size() - 1));
  const auto at = spread(wanted, gap, top - 2, bottom + 2);
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto& label = labels[i];
    const bool is_moved = std::abs(at[i] - label.wanted) > 3;
    if (is_moved || label.from < x - 14) {
      svg.path(polyline({{label.from + 6, label.wanted}, {x - 8, label.wanted}, {x - 2, at[i]}}), "leader");
    }
    svg.text(x, at[i] + 4, Anchor::kStart, "label halo " + label.css, escape(fit(label.name, width, kFontSize)));
  }
}

/// The lowest row is at `bottom`. @param right  where labels begin.
void draw_refused(Svg& svg, const LineChart& chart, const Scale& x, double right, double width, double bottom) {
  double at = bottom - kLine * static_cast<double>(rows_of_refused(chart) - 1);
  for (const auto& line : chart.lines) {
    if (line.refused.empty()) continue;
    const std::string css = fmt::format("s{}", line.colour % kLineColours);
    for (const auto& place : line.refused) svg.cross(x(place.x), at, 4, "line " + css, place.tooltip);
    svg.text(right, at + 4, Anchor::kStart, "label " + css, escape(fit(line.refused_name, width, kFontSize)));
    at += kLine;
  }
}

/// Draws below `top`; returns the y at which the next may begin.
double draw_line_chart(Svg& svg, const LineChart& chart, double column, double top) {
  const double left = svg.is_narrow() ? 46 : 64, right = svg.width() - column - 18;
  const double refused_height = kLine * static_cast<double>(rows_of_refused(chart));
  const double plot_top = top + 38 + (chart.marks.empty() ? 0 : 14) + refused_height;
  const double bottom = plot_top + chart.height * (svg.is_narrow() ? 0.85 : 1.0);
  svg.text(0, top + 12, Anchor::kStart, "axis", escape(chart.y.title));
  Axis y_axis = chart.y;
  y_axis.title.clear();
  const Scale y = svg.y_axis(y_axis, left, right, plot_top, bottom);
  // room for markers and for the marks' text at both ends
  const Scale x = svg.x_axis(chart.x, left + 12, right - 8, bottom);

  for (const auto& mark : chart.marks) {
    const double px = x(mark.x);
    svg.line(px, plot_top - 8, px, bottom, "mark");
    const bool is_left = px<left + 90, is_right = px> right - 90;
    svg.text(px, plot_top - 12,
             is_left    ? Anchor::kStart
             : is_right ? Anchor::kEnd
                        : Anchor::kMiddle,
             "label", mark.markup);
  }
  if (refused_height > 0) draw_refused(svg, chart, x, right + 10, column + 4, plot_top - 14);
  std::vector<EndLabel> labels;
  for (const auto& reference : chart.references) {
    svg.line(left, y(reference.y), right, y(reference.y), "reference");
    labels.push_back({reference.name, y(reference.y), right, "quiet"});
  }
  for (const auto& line : chart.lines) {
    std::vector<std::pair<double, double>> points;
    for (const auto& [px, py] : line.points) points.emplace_back(x(px), y(py));
    if (points.empty()) continue;
    const std::string css = fmt::format("s{} {}", line.colour % kLineColours, line.css);
    svg.path(polyline(points), "line " + css);
    for (size_t i = 0; i < points.size(); ++i) {
      svg.marker(line.shape, points[i].first, points[i].second, 3.6, "dot " + css,
                 i < line.tooltips.size() ? line.tooltips[i] : "");
    }
    if (line.is_labelled) {
      labels.push_back({line.name, points.back().second, points.back().first,
                        fmt::format("strong s{}", line.colour % kLineColours)});
    }
  }
  draw_labels(svg, labels, right + 10, column + 4, plot_top, bottom);
  return bottom + 46;
}

}  // namespace

void draw_line_charts(Svg& svg, const std::vector<LineChart>& charts) {
  const double column = label_column(svg, charts);
  double top = 0;
  for (const auto& chart : charts) top = draw_line_chart(svg, chart, column, top);
  svg.set_height(top);
}

}  // namespace refrain::report
