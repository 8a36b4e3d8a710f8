#include <fmt/format.h>

#include <algorithm>

#include "apps/report/bars.h"
#include "apps/report/kinds.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

/// Bytes by kind, of which breakdown documents name five; -1 where a document leaves one out.
using Parts = std::vector<int64_t>;

struct BreakdownRow {
  int64_t batch = 0;
  Parts estimated, measured;
};

Parts read_parts(const Field& field, bool has_temporaries) {
  Parts parts(kinds().size(), -1);
  for (size_t kind = 0; kind < kinds().size(); ++kind) {
    const std::string name = kinds()[kind].plural;
    if (name.empty() || (name == "temporaries" && !has_temporaries)) continue;
    parts[kind] = field[name].bytes();
  }
  return parts;
}

std::vector<BreakdownRow> read_rows(const Field& list) {
  std::vector<BreakdownRow> rows;
  for (const Field& item : list.items()) {
    rows.push_back({item["batch"].count(), read_parts(item["estimated"], false), read_parts(item["measured"], true)});
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const BreakdownRow& a, const BreakdownRow& b) { return a.batch < b.batch; });
  return rows;
}

double sum(const Parts& parts) {
  double total = 0;
  for (const int64_t bytes : parts) total += static_cast<double>(std::max<int64_t>(bytes, 0));
  return total;
}

std::vector<BarPart> bar_parts(const Parts& parts, const ByteUnit& unit) {
  std::vector<BarPart> list;
  for (size_t kind = 0; kind < parts.size(); ++kind) {
    if (parts[kind] > 0)
      list.push_back(
          {kind, unit.of(parts[kind]), fmt::format("{}: {} bytes", kinds()[kind].name, grouped(parts[kind]))});
  }
  return list;
}

std::string key(const std::vector<BreakdownRow>& rows) {
  std::string out = "<ul class=\"key\">";
  for (size_t kind = 0; kind < kinds().size(); ++kind) {
    const bool is_there = std::any_of(rows.begin(), rows.end(), [&](const BreakdownRow& row) {
      return row.measured[kind] > 0 || row.estimated[kind] > 0;
    });
    if (is_there) out += "<li>" + kind_label(kind) + "</li>";
  }
  return out + "</ul>\n";
}

std::string table(const std::vector<BreakdownRow>& rows, const ByteUnit& unit) {
  std::vector<size_t> columns;
  std::vector<std::string> header{"batch"};
  for (size_t kind = 0; kind < kinds().size(); ++kind) {
    if (std::string(kinds()[kind].plural).empty()) continue;
    columns.push_back(kind);
    header.push_back(fmt::format("{}, {}", kinds()[kind].name, unit.name));
  }
  HtmlTable table("Bytes by batch; estimated from model and optimizer, measured by the allocator", header);
  for (const auto& row : rows) {
    for (const auto* parts : {&row.measured, &row.estimated}) {
      const bool is_measured = parts == &row.measured;
      std::vector<std::string> cells{count(row.batch).html() + (is_measured ? " measured" : " estimated")};
      for (const size_t kind : columns) cells.push_back((*parts)[kind] < 0 ? "–" : bytes_cell((*parts)[kind], unit));
      table.add(std::move(cells), is_measured ? "" : "estimated");
    }
  }
  return table.str();
}

}  // namespace

std::string breakdown_section(const Field& document, const Place& place) {
  const auto rows = read_rows(document["rows"]);
  const auto crossover = document.find("crossover_batch");
  const std::string optimizer = document["optimizer"].text();
  if (rows.empty()) return "<p class=\"finding\">No batches were measured.</p>\n";
  double largest = 0;
  for (const auto& row : rows) largest = std::max({largest, sum(row.measured), sum(row.estimated)});
  const ByteUnit unit = unit_for(static_cast<int64_t>(std::min(largest, 9.2e18)));

  StackedBarChart chart{.groups = {}, .axis_title = unit.name, .divider_before = std::nullopt, .divider_markup = {}};
  for (const auto& row : rows) {
    chart.groups.push_back(
        {"batch " + count(row.batch).svg(), bar_parts(row.measured, unit), bar_parts(row.estimated, unit)});
  }
  std::string finding =
      "In no measured batch do activations exceed the fixed cost of parameters, gradients and optimizer state.";
  if (crossover) {
    const double at = crossover->number();
    const auto after = std::find_if(rows.begin(), rows.end(),
                                    [&](const BreakdownRow& row) { return static_cast<double>(row.batch) >= at; });
    chart.divider_before = static_cast<size_t>(after - rows.begin());
    chart.divider_markup = "activations exceed the fixed cost from batch " + plain(at).svg();
    finding =
        fmt::format("{} <b>{}</b> on, activations exceed the fixed cost of parameters, gradients and optimizer state.",
                    after == rows.end() ? "Beyond the measured batches, from batch" : "From batch", plain(at).html());
  }
  std::string description = fmt::format(
      "Stacked bars for {} batches, measured over estimated, by kind. The table after the chart has the numbers.",
      rows.size() == 1 ? "a single" : "several");
  std::string out = fmt::format("<p class=\"finding\">{} Optimizer: {}.</p>\n", finding, tagged("b", optimizer));
  out += figure(place.id + "-parts", "Memory by kind and batch size", description,
                [&](Svg& svg) { draw_stacked_bars(svg, chart); });
  out +=
      key(rows) +
      "<p class=\"note\">Thick bars: measured. Thin bars: estimated from the model and the optimizer; temporaries are not estimated.</p>\n";
  return out + table(rows, unit);
}

}  // namespace refrain::report
