#include "apps/report/area_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "apps/report/kinds.h"
#include "apps/report/markup.h"

namespace refrain::report {
namespace {

struct Plot {
  double left, right, top, bottom;
  Scale x, y;  ///< µs, bytes
};

/// The outline of one kind's area: along its upper edge, back along its lower one. Levels hold until the next.
std::string outline(const std::vector<Level>& levels, const std::vector<double>& below, size_t kind, const Plot& plot,
                    double end_us) {
  const auto x = [&](size_t i) { return coordinate(plot.x(i < levels.size() ? levels[i].t_us : end_us)); };
  const auto top = [&](size_t i) {
    return coordinate(plot.y(below[i] + static_cast<double>(levels[i].by_kind[kind])));
  };
  const auto bottom = [&](size_t i) { return coordinate(plot.y(below[i])); };
  std::string d = "M" + x(0) + " " + top(0);
  for (size_t i = 1; i < levels.size(); ++i) {
    if (top(i) != top(i - 1)) d += "H" + x(i) + "V" + top(i);
  }
  d += "H" + x(levels.size()) + "V" + bottom(levels.size() - 1);
  for (size_t i = levels.size() - 1; i > 0; --i) {
    if (bottom(i) != bottom(i - 1)) d += "H" + x(i) + "V" + bottom(i - 1);
  }
  return d + "H" + x(0) + "Z";
}

void draw_areas(Svg& svg, const AreaChart& chart, const Plot& plot, double end_us) {
  const auto levels = thin_out(chart.levels, static_cast<size_t>((plot.right - plot.left) / 1.5));
  if (levels.empty()) return;
  std::vector<double> below(levels.size(), 0.0);
  for (size_t kind = 0; kind < kinds().size(); ++kind) {
    const bool is_there =
        std::any_of(levels.begin(), levels.end(), [&](const Level& level) { return level.by_kind[kind] > 0; });
    if (!is_there) continue;
    const std::string d = outline(levels, below, kind, plot, end_us);
    svg.path(d, fmt::format("area k-{}", kinds()[kind].id));
    if (kinds()[kind].is_patterned) svg.path(d, fmt::format("t-{}", kinds()[kind].id));
    for (size_t i = 0; i < levels.size(); ++i) below[i] += static_cast<double>(levels[i].by_kind[kind]);
  }
}

/// A name over all that bears it; recomputation lies within backward and has a strip of its own.
void draw_phases(Svg& svg, const AreaChart& chart, const Plot& plot) {
  constexpr double kStrip = 22, kHeight = 6;
  std::map<std::string, std::pair<double, double>> spans;
  for (const auto& phase : chart.phases) {
    const double begin = plot.x(phase.begin_us), end = plot.x(phase.end_us);
    const bool is_recompute = phase.name == "recompute";
    svg.rect(begin, is_recompute ? kStrip + kHeight + 1 : kStrip, end - begin, kHeight, "phase p-" + phase.name);
    if (phase.name != "forward")
      svg.rect(begin, plot.top, end - begin, plot.bottom - plot.top, "shade p-" + phase.name);
    auto [at, is_new] = spans.try_emplace(phase.name, begin, end);
    if (!is_new) at->second = {std::min(at->second.first, begin), std::max(at->second.second, end)};
  }
  double free_from = 0;
  for (const char* name : {"forward", "backward", "optimizer"}) {
    const auto found = spans.find(name);
    if (found == spans.end()) continue;
    const auto [begin, end] = found->second;
    const double width = text_width(name, kFontSize);
    const double last = plot.right - width;
    const double x = std::max(std::clamp((begin + end) / 2 - width / 2, std::min(plot.left, last), last), free_from);
    svg.text(x, kStrip - 7, Anchor::kStart, "label", name);
    svg.line(begin, kStrip - 2, begin, plot.bottom, "boundary");
    free_from = x + width + 8;
  }
  if (const auto found = spans.find("recompute"); found != spans.end()) {
    const double right = found->second.first - 5;
    const bool has_room = right - text_width("recompute", kFontSize) >= plot.left;
    if (has_room) svg.text(right, kStrip + 2 * kHeight + 2, Anchor::kEnd, "label quiet small halo", "recompute");
  }
}

// Over the areas, at their scale: what is between them is fragmentation, and what takes memory past the allocator.
/// Whether a label that ends at the right would lie on that of the peak, some 120 wide and a line high.
bool meets_peak_label(const AreaChart& chart, const Plot& plot, double right, double baseline) {
  constexpr double kPeakWidth = 130, kWidth = 60, kLine = 15;
  const double x = plot.x(chart.peak.t_us), y = plot.y(static_cast<double>(chart.peak.bytes)) - 5;
  const bool is_right = x > (plot.left + plot.right) / 2;
  const double peak_left = is_right ? x - 8 - kPeakWidth : x + 8, peak_right = is_right ? x - 8 : x + 8 + kPeakWidth;
  return std::abs(baseline - y) < kLine && right - kWidth < peak_right && right > peak_left;
}

void draw_resident(Svg& svg, const AreaChart& chart, const Plot& plot) {
  std::vector<std::pair<double, double>> points;
  for (const auto& point : chart.resident)
    points.emplace_back(plot.x(point.t_us), plot.y(static_cast<double>(point.bytes)));
  if (points.size() < 2) return;
  svg.path(polyline(points), "resident");
  const double right = points.back().first - 4, line = points.back().second;
  const bool is_below = meets_peak_label(chart, plot, right, line - 5);
  svg.text(right, line + (is_below ? 14 : -5), Anchor::kEnd, "label small halo", "resident");
}

void draw_peak_line(Svg& svg, const AreaChart& chart, const Plot& plot) {
  const double x = plot.x(chart.peak.t_us), y = plot.y(static_cast<double>(chart.peak.bytes));
  svg.line(x, y, x, plot.bottom, "peak");
  svg.marker(0, x, y, 3.5, "peak-dot");
  const bool is_right = x > (plot.left + plot.right) / 2;
  const std::string text = "peak " + number_of(chart.peak.bytes, chart.unit).svg() + " " + chart.unit.name;
  svg.text(x + (is_right ? -8 : 8), y - 5, is_right ? Anchor::kEnd : Anchor::kStart, "label strong halo", text);
}

/// The peak at the plot's own scale, its kinds named from top to bottom.
void draw_peak_bar(Svg& svg, const AreaChart& chart, const Plot& plot) {
  constexpr double kWidth = 14;
  const double left = plot.right + 22, labels = left + kWidth + 20;
  std::vector<size_t> present;
  std::vector<double> middles;
  double sum = 0;
  for (size_t kind = 0; kind < kinds().size(); ++kind) {
    const auto bytes = static_cast<double>(chart.peak.by_kind[kind]);
    if (bytes <= 0) continue;
    const double bottom = plot.y(sum), top = plot.y(sum += bytes);
    svg.rect(left, top, kWidth, bottom - top, fmt::format("k-{}", kinds()[kind].id),
             grouped(chart.peak.by_kind[kind]) + " bytes");
    if (kinds()[kind].is_patterned)
      svg.rect(left, top, kWidth, bottom - top, fmt::format("t-{} through", kinds()[kind].id));
    if (bottom - top > 2) svg.line(left, top, left + kWidth, top, "seam");
    present.push_back(kind);
    middles.push_back((top + bottom) / 2);
  }
  const auto at = spread(middles, kLine + 1, plot.top + 4, plot.bottom - 4);
  for (size_t i = 0; i < present.size(); ++i) {
    svg.path(polyline({{left + kWidth + 2, middles[i]}, {labels - 10, at[i]}, {labels - 4, at[i]}}), "leader");
    svg.text(
        labels, at[i] + 4, Anchor::kStart, "label",
        fmt::format("{} {}", kinds()[present[i]].name, number_of(chart.peak.by_kind[present[i]], chart.unit).svg()));
  }
  svg.text(left, plot.top - 14, Anchor::kStart, "axis", "at the peak");
}

}  // namespace

std::pair<double, double> time_range(const AreaChart& chart) {
  double begin = std::numeric_limits<double>::infinity(), end = -begin;
  const auto include = [&](double t) {
    begin = std::min(begin, t);
    end = std::max(end, t);
  };
  if (!chart.levels.empty()) {
    include(chart.levels.front().t_us);
    include(chart.levels.back().t_us);
  }
  for (const auto& phase : chart.phases) {
    include(phase.begin_us);
    include(phase.end_us);
  }
  include(chart.peak.t_us);
  if (begin == end) end = begin + 1;
  return {begin, end};
}

void draw_area_chart(Svg& svg, const AreaChart& chart) {
  const auto [begin, end] = time_range(chart);
  const double side = svg.is_narrow() ? 8 : 198;
  Plot plot{.left = svg.is_narrow() ? 46.0 : 64.0,
            .right = svg.width() - side,
            .top = 44,
            .bottom = svg.is_narrow() ? 290.0 : 400.0,
            .x = {},
            .y = {}};
  svg.set_height(plot.bottom + 42);
  int64_t highest = std::max({chart.peak.bytes, chart.scale_bytes, chart.base_bytes});
  for (const auto& level : chart.levels) highest = std::max(highest, level.total);
  for (const auto& point : chart.resident) highest = std::max(highest, point.bytes);

  const Axis memory = Axis::from_zero(1.04 * chart.unit.of(highest), 6, chart.unit.name);
  const Scale y = svg.y_axis(memory, plot.left, plot.right, plot.top, plot.bottom);
  plot.y = {.low = 0, .high = memory.high * chart.unit.bytes, .from = y.from, .to = y.to};
  plot.x = svg.x_axis(Axis::within(begin / 1000, end / 1000, svg.is_narrow() ? 4 : 8, "ms"), plot.left, plot.right,
                      plot.bottom);
  plot.x.low = begin;
  plot.x.high = end;

  draw_areas(svg, chart, plot, end);
  draw_phases(svg, chart, plot);
  if (chart.base_bytes > 0) {
    const double base = plot.y(static_cast<double>(chart.base_bytes));
    svg.line(plot.left, base, plot.right, base, "reference");
  }
  draw_resident(svg, chart, plot);
  draw_peak_line(svg, chart, plot);
  if (!svg.is_narrow()) draw_peak_bar(svg, chart, plot);
  svg.attribute("plot", fmt::format("{} {} {} {}", coordinate(plot.left), coordinate(plot.right), coordinate(plot.top),
                                    coordinate(plot.bottom)));
}

}  // namespace refrain::report
