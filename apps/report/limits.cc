#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "apps/report/line_chart.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

/// What was measured of a step that fits its limit.
struct Kept {
  int64_t peak_bytes = 0;
  double step_ms = 0, added_ms = 0, overhead = 0;
  std::optional<double> spread_ms;
  int64_t evictions = 0, recomputes = 0;
  double choosing_ms = 0;
  bool is_bit_equal = false;
};

struct LimitRow {
  int64_t percent = 0;
  std::string heuristic;
  int64_t limit_bytes = 0;
  std::optional<Kept> kept;
  std::optional<int64_t> missing_bytes;
  bool is_too_slow = false;
};

struct Published {
  std::string method, model, source;
  double limit_gb = 0, plain_gb = 0, overhead = 0;
  std::optional<int64_t> nearest_percent;
  std::optional<double> nearest_overhead;

  std::string name() const { return method + ", " + model; }
  double percent() const { return 100 * limit_gb / plain_gb; }
};

struct Limits {
  int64_t plain_peak_bytes = 0;
  double plain_ms = 0;
  std::optional<double> plain_spread_ms;
  std::vector<LimitRow> rows;  ///< from the loosest limit
  std::vector<std::string> heuristics;
  std::vector<Published> published;

  bool compares() const { return heuristics.size() > 1; }
};

Kept read_kept(const Field& item) {
  return {.peak_bytes = item["peak_bytes"].bytes(),
          .step_ms = item["step_ms_median"].duration(),
          .added_ms = item["added_ms_median"].number(),
          .overhead = item["overhead"].number(),
          .spread_ms = read_spread(item),
          .evictions = item["evictions"].count(),
          .recomputes = item["recomputes"].count(),
          .choosing_ms = item["choosing_ms"].duration(),
          .is_bit_equal = item["bit_equal"].truth()};
}

LimitRow read_limit_row(const Field& item) {
  LimitRow row{.percent = item["percent"].count(),
               .heuristic = item["heuristic"].text(),
               .limit_bytes = item["limit_bytes"].bytes(),
               .kept = {},
               .missing_bytes = {}};
  if (item["fits"].truth()) row.kept = read_kept(item);
  if (const auto missing = item.find("missing_bytes")) row.missing_bytes = missing->bytes();
  if (const auto refused = item.find("refused")) row.is_too_slow = refused->text() == "time";
  return row;
}

Published read_published(const Field& item) {
  Published point{.method = item["method"].text(),
                  .model = item["model"].text(),
                  .source = item["source"].text(),
                  .limit_gb = item["limit_gb"].duration(),
                  .plain_gb = item["plain_gb"].duration(),
                  .overhead = item["overhead"].number(),
                  .nearest_percent = {},
                  .nearest_overhead = {}};
  if (!(point.plain_gb > 0)) item["plain_gb"].refuse("more than 0");
  if (const auto percent = item.find("nearest_percent")) point.nearest_percent = percent->count();
  if (const auto overhead = item.find("nearest_overhead")) point.nearest_overhead = overhead->number();
  return point;
}

Limits read(const Field& document) {
  Limits all;
  const Field plain = document["plain"];
  all.plain_peak_bytes = plain["peak_bytes"].bytes();
  all.plain_ms = plain["step_ms_median"].duration();
  all.plain_spread_ms = read_spread(plain);
  for (const Field& item : document["rows"].items()) {
    all.rows.push_back(read_limit_row(item));
    const auto& name = all.rows.back().heuristic;
    if (std::find(all.heuristics.begin(), all.heuristics.end(), name) == all.heuristics.end())
      all.heuristics.push_back(name);
  }
  std::stable_sort(all.rows.begin(), all.rows.end(),
                   [](const LimitRow& a, const LimitRow& b) { return a.percent > b.percent; });
  if (const auto published = document.find("published")) {
    for (const Field& item : published->items()) all.published.push_back(read_published(item));
  }
  return all;
}

Number percents(int64_t percent) { return {.shown = grouped(percent) + " %", .exact = std::to_string(percent)}; }

/// A line over the limits for each heuristic. @param tooltip  of a value, with its unit.
std::vector<Line> lines(const Limits& all, const auto& value, const auto& tooltip) {
  std::vector<Line> list;
  for (size_t i = 0; i < all.heuristics.size(); ++i) {
    Line line{
        .name = all.compares() ? all.heuristics[i] : "refrain", .points = {}, .tooltips = {}, .colour = i, .shape = i};
    if (all.compares()) line.refused_name = line.name + ": no fit";
    for (auto row = all.rows.rbegin(); row != all.rows.rend(); ++row) {
      if (row->heuristic != all.heuristics[i]) continue;
      const auto x = static_cast<double>(row->percent);
      const std::string at = fmt::format("{} within {} %: ", line.name, row->percent);
      if (row->kept) {
        line.points.emplace_back(x, value(*row->kept));
        line.tooltips.push_back(at + tooltip(*row->kept));
      } else {
        line.refused.push_back({x, at + (row->is_too_slow ? "exceeds max-overhead" : "does not fit")});
      }
    }
    list.push_back(std::move(line));
  }
  return list;
}

Axis limit_axis(const Limits& all) {
  std::vector<double> xs;
  for (const auto& row : all.rows) xs.push_back(static_cast<double>(row.percent));
  Axis axis = Axis::at_values(std::move(xs), "limit, % of the baseline peak");
  axis.is_log = false;
  for (const auto& point : all.published) {
    axis.low = std::min(axis.low, point.percent());
    axis.high = std::max(axis.high, point.percent());
  }
  return axis;
}

/// In percent. Noise a little below 0 is drawn at the base.
Axis overhead_axis(double low, double high) {
  const std::string title = "added time, % of the baseline step";
  return low < -0.05 * high ? Axis::around(low, high, 5, title) : Axis::from_zero(high, 5, title);
}

void draw(Svg& svg, const Limits& all) {
  const auto overhead = [](const Kept& kept) { return 100 * kept.overhead; };
  double low = 0, high = 0, most = 0;
  for (const auto& row : all.rows) {
    if (!row.kept) continue;
    low = std::min(low, overhead(*row.kept));
    high = std::max(high, overhead(*row.kept));
    most = std::max(most, static_cast<double>(row.kept->recomputes));
  }
  for (const auto& point : all.published) high = std::max(high, 100 * point.overhead);
  LineChart time{.x = limit_axis(all),
                 .y = overhead_axis(low, high),
                 .lines = lines(all, overhead, [](const Kept& kept) { return "adds " + exact(kept.added_ms) + " ms"; }),
                 .references = {},
                 .marks = {},
                 .height = 280};
  for (const auto& point : all.published) {
    const size_t i = time.lines.size();
    time.lines.push_back({.name = point.method,
                          .points = {{point.percent(), 100 * point.overhead}},
                          .tooltips = {point.name()},
                          .colour = i,
                          .css = "dots",
                          .shape = i});
  }
  LineChart again{.x = time.x,
                  .y = Axis::from_zero(most, 3, "recomputed operators"),
                  .lines = lines(
                      all, [](const Kept& kept) { return static_cast<double>(kept.recomputes); },
                      [](const Kept& kept) { return grouped(kept.recomputes) + " operators"; }),
                  .references = {},
                  .marks = {},
                  .height = 120};
  for (auto& line : again.lines) line.refused.clear();
  draw_line_charts(svg, {time, again});
}

std::string refusal(const LimitRow& row, const ByteUnit& unit) {
  const std::string why = row.is_too_slow     ? "max-overhead exceeded"
                          : row.missing_bytes ? with_unit(*row.missing_bytes, unit) + " missing"
                                              : "";
  return fmt::format("does not fit <small>{}</small>", why);
}

std::string table(const Limits& all, const ByteUnit& unit) {
  std::vector<std::string> header{"limit"};
  if (all.compares()) header.emplace_back("heuristic");
  header.insert(header.end(), {fmt::format("limit, {}", unit.name), fmt::format("peak, {}", unit.name),
                               "step, ms (median)", "added", "evictions", "recomputed", "policy, ms", "bit-equal"});
  HtmlTable table("The same in numbers", header);
  if (all.compares()) table.text_columns({1});
  const auto add = [&](std::string limit, const std::string& heuristic, std::vector<std::string> cells,
                       const char* css) {
    std::vector<std::string> whole{std::move(limit)};
    if (all.compares()) whole.push_back(escape(heuristic));
    whole.insert(whole.end(), cells.begin(), cells.end());
    whole.resize(header.size(), "–");
    table.add(whole, css);
  };
  add("none", "–", {"–", bytes_cell(all.plain_peak_bytes, unit), median_and_spread(all.plain_ms, all.plain_spread_ms)},
      "plain");
  for (const auto& row : all.rows) {
    std::vector<std::string> cells{bytes_cell(row.limit_bytes, unit)};
    if (row.kept) {
      const auto& kept = *row.kept;
      const bool is_over = kept.peak_bytes > row.limit_bytes;
      cells.insert(cells.end(),
                   {bytes_cell(kept.peak_bytes, unit) + (is_over ? " <strong>over</strong>" : ""),
                    median_and_spread(kept.step_ms, kept.spread_ms), percent_of_one(kept.overhead).html(),
                    count(kept.evictions).html(), count(kept.recomputes).html(), milliseconds(kept.choosing_ms).html(),
                    kept.is_bit_equal ? "yes" : "<strong>NO</strong>"});
    } else {
      cells.push_back(refusal(row, unit));
    }
    add(percents(row.percent).html(), row.heuristic, std::move(cells), row.kept ? "" : "refused");
  }
  return table.str();
}

std::string published_table(const Limits& all) {
  if (all.published.empty()) return "";
  HtmlTable table("Comparison with published figures",
                  {"published", "limit, of the baseline", "added", "nearest limit here", "added here"});
  std::string sources;
  for (const auto& point : all.published) {
    table.add({escape(point.name()),
               fmt::format("{} <small>{} of {} GB</small>", percent(point.limit_gb, point.plain_gb).html(),
                           plain(point.limit_gb).html(), plain(point.plain_gb).html()),
               percent_of_one(point.overhead).html(),
               point.nearest_percent ? percents(*point.nearest_percent).html() : "none fits",
               point.nearest_overhead ? percent_of_one(*point.nearest_overhead).html() : "–"});
    sources += fmt::format("{}: {}. ", escape(point.method), escape(point.source));
  }
  return table.str() +
         fmt::format(
             "<p class=\"note\">{}Another machine, other sizes. Published limits include parameters, those here only what "
             "a step adds, so the same percentage is a tighter limit here.</p>\n",
             sources);
}

std::string finding(const Limits& all, const ByteUnit& unit) {
  const LimitRow* lowest = nullptr;
  for (const auto& row : all.rows) {
    if (row.kept && row.heuristic == all.heuristics.front()) lowest = &row;
  }
  const std::string plain = with_unit(all.plain_peak_bytes, unit);
  if (!lowest) return fmt::format("The baseline peaks at {}; none of these limits fits.", plain);
  std::string text = fmt::format("The baseline peaks at {}. Within {}, {} of that, a step gives the same", plain,
                                 with_unit(lowest->limit_bytes, unit), percents(lowest->percent).html());
  text += lowest->kept->is_bit_equal ? " bits and " : " with other bits, and ";
  text += fmt::format("takes {} more time.", percent_of_one(lowest->kept->overhead).html());
  const auto refused = std::find_if(all.rows.begin(), all.rows.end(), [&](const LimitRow& row) {
    return !row.kept && row.heuristic == lowest->heuristic && row.percent < lowest->percent;
  });
  if (refused != all.rows.end()) text += fmt::format(" {} does not fit.", percents(refused->percent).html());
  return text;
}

std::string warnings(const Limits& all) {
  std::string out;
  const auto any = [&](const auto& is) {
    return std::any_of(all.rows.begin(), all.rows.end(),
                       [&](const LimitRow& row) { return row.kept && is(row, *row.kept); });
  };
  if (any([](const LimitRow&, const Kept& kept) { return !kept.is_bit_equal; }))
    out += "<p class=\"warning\">Not all steps are bit-equal to the baseline: see the last column.</p>\n";
  if (any([](const LimitRow& row, const Kept& kept) { return kept.peak_bytes > row.limit_bytes; }))
    out += "<p class=\"warning\">Not all limits were kept: see the peaks.</p>\n";
  return out;
}

}  // namespace

std::string limits_section(const Field& document, const Place& place) {
  const Limits all = read(document);
  if (all.rows.empty()) return "<p class=\"finding\">No limits were measured.</p>\n";
  int64_t largest = all.plain_peak_bytes;
  for (const auto& row : all.rows) largest = std::max({largest, row.limit_bytes, row.kept ? row.kept->peak_bytes : 0});
  const ByteUnit unit = unit_for(largest);
  const bool any_refused = std::any_of(all.rows.begin(), all.rows.end(), [](const LimitRow& row) { return !row.kept; });
  std::string note = "Bytes are over the level before the step. ";
  if (any_refused) note += "Crosses: limits that do not fit, where a step throws <code>OutOfMemory</code>. ";
  if (!all.published.empty()) note += "Open mark: published for a model of this family.";
  return fmt::format("<p class=\"finding\">{}</p>\n", finding(all, unit)) + warnings(all) +
         figure(
             place.id + "-limits", "Added time by memory limit",
             "Lines over the limit in percent of the baseline peak: added time of a step, and below it the number of "
             "recomputed operators. The table after the chart has the numbers.",
             [&](Svg& svg) { draw(svg, all); }) +
         fmt::format("<p class=\"note\">{}</p>\n", note) + table(all, unit) + published_table(all);
}

}  // namespace refrain::report
