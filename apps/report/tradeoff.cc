#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "apps/report/line_chart.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

struct Point {
  int64_t peak_bytes = 0;
  double added_ms = 0, overhead = 0;
  std::optional<int64_t> recomputed_ops;
  std::optional<bool> is_bit_equal;
};

struct Series {
  std::string name, role;
  std::vector<Point> points;  ///< from the largest peak
};

struct Tradeoff {
  int64_t plain_peak_bytes = 0;
  double plain_ms = 0;
  std::optional<int64_t> floor_bytes;
  std::vector<Series> series;  ///< those with points
};

Point read_point(const Field& item) {
  Point point{.peak_bytes = item["peak_bytes"].bytes(),
              .added_ms = item["added_ms"].number(),
              .overhead = item["overhead"].number(),
              .recomputed_ops = {},
              .is_bit_equal = {}};
  if (const auto ops = item.find("recomputed_ops")) point.recomputed_ops = ops->count();
  if (const auto equal = item.find("bit_equal")) point.is_bit_equal = equal->truth();
  return point;
}

Series read_series(const Field& item) {
  Series series{.name = item["name"].text(), .role = "planned", .points = {}};
  if (const auto role = item.find("role")) {
    series.role = role->text();
    if (series.role != "planned" && series.role != "measured" && series.role != "bound")
      role->refuse("planned, measured or bound");
  }
  for (const Field& point : item["points"].items()) series.points.push_back(read_point(point));
  std::stable_sort(series.points.begin(), series.points.end(),
                   [](const Point& a, const Point& b) { return a.peak_bytes > b.peak_bytes; });
  return series;
}

Tradeoff read_tradeoff(const Field& document) {
  Tradeoff all;
  all.plain_peak_bytes = document["plain"]["peak_bytes"].bytes();
  all.plain_ms = document["plain"]["step_ms_median"].duration();
  if (const auto floor = document.find("floor_bytes")) all.floor_bytes = floor->bytes();
  for (const Field& item : document["series"].items()) {
    all.series.push_back(read_series(item));
    if (all.series.back().points.empty()) all.series.pop_back();
  }
  return all;
}

/// In percent. Where one series costs many times what the first does, the chart ends below it.
double most_shown(const Tradeoff& all) {
  double first = 0;
  for (const auto& point : all.series.front().points) first = std::max(first, 100 * point.overhead);
  double most = first;
  for (const auto& series : all.series)
    for (const auto& point : series.points)
      if (first == 0 || 100 * point.overhead <= 3 * first) most = std::max(most, 100 * point.overhead);
  return most;
}

size_t points_over(const Tradeoff& all) {
  size_t over = 0;
  for (const auto& series : all.series)
    over += static_cast<size_t>(std::count_if(series.points.begin(), series.points.end(), [&](const Point& point) {
      return 100 * point.overhead > most_shown(all);
    }));
  return over;
}

Line line(const Series& series, size_t i, const ByteUnit& unit, double most) {
  Line line{.name = series.name,
            .points = {},
            .tooltips = {},
            .colour = i,
            .css = series.role == "measured" ? "dots"
                   : series.role == "bound"  ? "thin dashed"
                                             : "",
            .shape = i + i / 6};  // where colours begin again, shapes are others
  for (const auto& point : series.points) {
    if (100 * point.overhead > most) continue;
    line.points.emplace_back(unit.of(point.peak_bytes), 100 * point.overhead);
    line.tooltips.push_back(
        fmt::format("{}: peak {} bytes, adds {} ms", series.name, grouped(point.peak_bytes), exact(point.added_ms)));
  }
  return line;
}

void draw(Svg& svg, const Tradeoff& all, const ByteUnit& unit) {
  int64_t least = all.floor_bytes.value_or(all.plain_peak_bytes), largest = all.plain_peak_bytes;
  double low = 0;
  for (const auto& series : all.series) {
    for (const auto& point : series.points) {
      least = std::min(least, point.peak_bytes);
      largest = std::max(largest, point.peak_bytes);
      low = std::min(low, 100 * point.overhead);
    }
  }
  const double most = most_shown(all);
  const std::string title = "added time, % of the baseline step";
  LineChart chart{
      .x = Axis::within(unit.of(least), unit.of(largest), svg.is_narrow() ? 4 : 8, fmt::format("peak, {}", unit.name)),
      .y = low < -0.05 * most ? Axis::around(low, most, 5, title) : Axis::from_zero(most, 5, title),
      .lines = {},
      .references = {},
      .marks = {},
      .height = 320};
  chart.x.is_reversed = true;
  if (all.floor_bytes)
    chart.marks.push_back({unit.of(*all.floor_bytes),
                           fmt::format("no plan below {} {}", number_of(*all.floor_bytes, unit).svg(), unit.name)});
  for (size_t i = 0; i < all.series.size(); ++i) chart.lines.push_back(line(all.series[i], i, unit, most));
  draw_line_charts(svg, {chart});
}

std::string table(const Tradeoff& all, const ByteUnit& unit) {
  HtmlTable table("The same in numbers", {"series", fmt::format("peak, {}", unit.name), "peak saved", "added, ms",
                                          "added", "recomputed", "bit-equal"});
  for (const auto& series : all.series) {
    for (const auto& point : series.points) {
      table.add({escape(series.name), bytes_cell(point.peak_bytes, unit),
                 saving(static_cast<double>(point.peak_bytes), static_cast<double>(all.plain_peak_bytes)).html(),
                 milliseconds(point.added_ms).html(), percent_of_one(point.overhead).html(),
                 point.recomputed_ops ? count(*point.recomputed_ops).html() : "–",
                 !point.is_bit_equal   ? "–"
                 : *point.is_bit_equal ? "yes"
                                       : "<strong>NO</strong>"});
    }
  }
  return table.str();
}

std::string finding(const Tradeoff& all, const ByteUnit& unit) {
  const auto& first = all.series.front();
  const Point& lowest = first.points.back();
  std::string text =
      fmt::format("The baseline peaks at {}. {} lowers that to {}, {} less, for {} more time.",
                  with_unit(all.plain_peak_bytes, unit), tagged("b", first.name), with_unit(lowest.peak_bytes, unit),
                  saving(static_cast<double>(lowest.peak_bytes), static_cast<double>(all.plain_peak_bytes)).html(),
                  percent_of_one(lowest.overhead).html());
  const Series* other = nullptr;
  for (const auto& series : all.series)
    if (&series != &first && series.role == "planned" &&
        (!other || series.points.back().peak_bytes < other->points.back().peak_bytes))
      other = &series;
  if (other == nullptr) return text;
  const Point& point = other->points.back();
  return text + fmt::format(" Of the others {} goes lowest, to {}, for {}.", tagged("b", other->name),
                            with_unit(point.peak_bytes, unit), percent_of_one(point.overhead).html());
}

bool is_any_unequal(const Tradeoff& all) {
  for (const auto& series : all.series)
    for (const auto& point : series.points)
      if (!point.is_bit_equal.value_or(true)) return true;
  return false;
}

std::string note(const Tradeoff& all) {
  std::string text = "Lower and further to the right is better. ";
  const auto has = [&](const char* role) {
    return std::any_of(all.series.begin(), all.series.end(), [&](const Series& series) { return series.role == role; });
  };
  if (has("measured")) text += "Open marks: measured steps; lines: plans, simulated. ";
  if (has("bound")) text += "Dashed line: lower bound of the added time. ";
  if (all.floor_bytes) text += "Vertical line: lower bound of the peak. ";
  if (points_over(all) > 0) text += "Points that cost many times more are only in the table. ";
  return fmt::format("<p class=\"note\">{}</p>\n", text);
}

}  // namespace

std::string pareto_section(const Field& document, const Place& place) {
  const Tradeoff all = read_tradeoff(document);
  if (all.series.empty()) return "<p class=\"finding\">No plans were made.</p>\n";
  int64_t largest = all.plain_peak_bytes;
  for (const auto& series : all.series) largest = std::max(largest, series.points.front().peak_bytes);
  const ByteUnit unit = unit_for(largest);
  std::string out = fmt::format("<p class=\"finding\">{}</p>\n", finding(all, unit));
  if (is_any_unequal(all))
    out += "<p class=\"warning\">Not all steps are bit-equal to the baseline: see the last column.</p>\n";
  return out +
         figure(
             place.id + "-pareto", "Added time by peak",
             "Lines from the baseline peak at the left to lower peaks: added time of a step, one for each planner. The "
             "table after the chart has the numbers.",
             [&](Svg& svg) { draw(svg, all, unit); }) +
         note(all) + details("All points in numbers", table(all, unit));
}

}  // namespace refrain::report
