#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "apps/report/line_chart.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

struct SegmentRow {
  int64_t segments = 0, after_forward_bytes = 0, peak_bytes = 0;
  double step_ms = 0;
  std::optional<double> spread_ms;
  std::optional<int64_t> predicted_peak_bytes;
};

SegmentRow read_segment_row(const Field& field) {
  SegmentRow row{.segments = 0,
                 .after_forward_bytes = field["after_forward_bytes"].bytes(),
                 .peak_bytes = field["peak_bytes"].bytes(),
                 .step_ms = field["step_ms_median"].duration(),
                 .spread_ms = read_spread(field),
                 .predicted_peak_bytes = {}};
  if (const auto segments = field.find("segments")) row.segments = segments->count();
  if (const auto predicted = field.find("predicted_peak_bytes")) row.predicted_peak_bytes = predicted->bytes();
  return row;
}

struct Segments {
  std::vector<SegmentRow> rows;
  std::optional<SegmentRow> plain, per_layer;
  double sqrt_segments = 0;
};

Segments read_segments(const Field& document) {
  Segments all;
  for (const Field& item : document["rows"].items()) {
    item["segments"].count();
    all.rows.push_back(read_segment_row(item));
  }
  std::stable_sort(all.rows.begin(), all.rows.end(),
                   [](const SegmentRow& a, const SegmentRow& b) { return a.segments < b.segments; });
  if (const auto plain = document.find("plain")) all.plain = read_segment_row(*plain);
  if (const auto per_layer = document.find("per_layer")) all.per_layer = read_segment_row(*per_layer);
  all.sqrt_segments = document["sqrt_segments"].duration();
  return all;
}

std::vector<SegmentRow> with_references(const Segments& all) {
  std::vector<SegmentRow> rows = all.rows;
  for (const auto& row : {all.plain, all.per_layer}) {
    if (row) rows.push_back(*row);
  }
  return rows;
}

Line line(const Segments& all, const char* name, size_t colour, const char* css, const auto& value,
          const auto& tooltip) {
  Line line{.name = name, .points = {}, .tooltips = {}, .colour = colour, .css = css, .shape = colour};
  for (const auto& row : all.rows) {
    line.points.emplace_back(static_cast<double>(row.segments), value(row));
    line.tooltips.push_back(fmt::format("{}, {} segments: {}", name, row.segments, tooltip(row)));
  }
  return line;
}

void draw(Svg& svg, const Segments& all, const ByteUnit& unit) {
  std::vector<double> xs;
  double highest = 0, slowest = 0;
  for (const auto& row : all.rows) xs.push_back(static_cast<double>(row.segments));
  for (const auto& row : with_references(all)) {
    highest = std::max({highest, unit.of(row.peak_bytes), unit.of(row.after_forward_bytes),
                        unit.of(row.predicted_peak_bytes.value_or(0))});
    slowest = std::max(slowest, row.step_ms);
  }
  LineChart memory{.x = Axis::at_values(xs, "segments"),
                   .y = Axis::from_zero(highest, 6, unit.name),
                   .lines = {},
                   .references = {},
                   .marks = {},
                   .height = 300};
  const auto bytes_line = [&](const char* name, size_t colour, const char* css, const auto& bytes) {
    return line(
        all, name, colour, css, [&](const SegmentRow& row) { return unit.of(bytes(row)); },
        [&](const SegmentRow& row) { return grouped(bytes(row)) + " bytes"; });
  };
  memory.lines.push_back(bytes_line("peak", 0, "", [](const SegmentRow& row) { return row.peak_bytes; }));
  memory.lines.push_back(
      bytes_line("after forward", 1, "thin", [](const SegmentRow& row) { return row.after_forward_bytes; }));
  const bool is_predicted = std::all_of(all.rows.begin(), all.rows.end(),
                                        [](const SegmentRow& row) { return row.predicted_peak_bytes.has_value(); });
  if (is_predicted) {
    memory.lines.push_back(
        bytes_line("predicted peak", 2, "dots", [](const SegmentRow& row) { return *row.predicted_peak_bytes; }));
    memory.lines.back().is_labelled = false;
  }
  LineChart time{.x = memory.x,
                 .y = Axis::from_zero(slowest, 4, "step, ms (median)"),
                 .lines = {},
                 .references = {},
                 .marks = {},
                 .height = 150};
  time.lines.push_back(line(
      all, "step", 0, "", [](const SegmentRow& row) { return row.step_ms; },
      [](const SegmentRow& row) { return exact(row.step_ms) + " ms"; }));
  const auto refer = [&](const char* name, const std::optional<SegmentRow>& row) {
    if (!row) return;
    memory.references.push_back({std::string(name), unit.of(row->peak_bytes)});
    time.references.push_back({std::string(name), row->step_ms});
  };
  refer("baseline", all.plain);
  refer("per layer", all.per_layer);
  if (memory.x.low <= all.sqrt_segments && all.sqrt_segments <= memory.x.high) {
    memory.marks.push_back({all.sqrt_segments, "√n = " + plain(all.sqrt_segments).svg()});
  }
  draw_line_charts(svg, {memory, time});
}

std::string table(const Segments& all, const ByteUnit& unit) {
  HtmlTable table("The same in numbers",
                  {"segments", fmt::format("after forward, {}", unit.name), fmt::format("peak, {}", unit.name),
                   fmt::format("predicted peak, {}", unit.name), "step, ms"});
  const auto add = [&](const std::string& name, const SegmentRow& row, const char* css) {
    table.add({name, bytes_cell(row.after_forward_bytes, unit), bytes_cell(row.peak_bytes, unit),
               row.predicted_peak_bytes ? bytes_cell(*row.predicted_peak_bytes, unit) : "–",
               median_and_spread(row.step_ms, row.spread_ms)},
              css);
  };
  if (all.plain) add("baseline", *all.plain, "plain");
  for (const auto& row : all.rows) add(count(row.segments).html(), row, "");
  if (all.per_layer) add("per layer", *all.per_layer, "");
  return table.str();
}

}  // namespace

std::string segments_section(const Field& document, const Place& place) {
  const Segments all = read_segments(document);
  const int64_t layers = document["layers"].count();
  if (all.rows.empty()) return "<p class=\"finding\">No numbers of segments were measured.</p>\n";
  int64_t largest = 0;
  for (const auto& row : with_references(all)) largest = std::max({largest, row.peak_bytes, row.after_forward_bytes});
  const ByteUnit unit = unit_for(largest);
  const auto& best = *std::min_element(all.rows.begin(), all.rows.end(), [](const SegmentRow& a, const SegmentRow& b) {
    return a.peak_bytes < b.peak_bytes;
  });

  std::string out = fmt::format("<p class=\"finding\">Of {} layers, <b>{} segments</b> have the lowest peak, {}",
                                count(layers).html(), count(best.segments).html(), with_unit(best.peak_bytes, unit));
  if (all.plain) {
    out += fmt::format(": {} less than the baseline, {}",
                       saving(static_cast<double>(best.peak_bytes), static_cast<double>(all.plain->peak_bytes)).html(),
                       with_unit(all.plain->peak_bytes, unit));
  }
  out += fmt::format(". √n is {}.", plain(all.sqrt_segments).html());
  if (all.per_layer && all.plain) {
    out += fmt::format(
        " A region around every single layer peaks at {}: each keeps its input, which the layer would have saved as well.",
        with_unit(all.per_layer->peak_bytes, unit));
  }
  out += "</p>\n";
  out += figure(
      place.id + "-segments", "Memory and time by number of segments",
      "Lines over the number of segments: peak, level after forward, predicted peak, and below them the time of a step. The table after the chart has the numbers.",
      [&](Svg& svg) { draw(svg, all, unit); });
  const bool is_predicted = std::any_of(all.rows.begin(), all.rows.end(),
                                        [](const SegmentRow& row) { return row.predicted_peak_bytes.has_value(); });
  if (is_predicted) out += "<p class=\"note\">Open diamonds: predicted peak.</p>\n";
  return out + table(all, unit);
}

}  // namespace refrain::report
