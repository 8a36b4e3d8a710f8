#include <fmt/format.h>

#include <algorithm>

#include "apps/report/bars.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

struct Trial {
  int64_t batch = 0;
  bool fits = false;
  std::optional<int64_t> peak_bytes;
};

struct BatchRow {
  std::string strategy;
  int64_t max_batch = 0, peak_bytes = 0;
  std::optional<int64_t> next_peak_bytes;
  std::optional<double> factor;
  std::vector<Trial> trials;
};

BatchRow read_batch_row(const Field& item) {
  BatchRow row{.strategy = item["strategy"].text(),
               .max_batch = item["max_batch"].count(),
               .peak_bytes = item["peak_bytes"].bytes(),
               .next_peak_bytes = {},
               .factor = {},
               .trials = {}};
  if (const auto next = item.find("next_peak_bytes")) row.next_peak_bytes = next->bytes();
  if (const auto factor = item.find("factor")) row.factor = factor->duration();
  for (const Field& trial : item["trials"].items()) {
    row.trials.push_back({trial["batch"].count(), trial["fits"].truth(), {}});
    if (const auto peak = trial.find("peak_bytes")) row.trials.back().peak_bytes = peak->bytes();
  }
  return row;
}

std::string table(const std::vector<BatchRow>& rows, const ByteUnit& unit) {
  HtmlTable table("Largest batch within the limit",
                  {"strategy", "largest batch", "factor", fmt::format("peak, {}", unit.name),
                   fmt::format("peak of one more, {}", unit.name)});
  for (const auto& row : rows) {
    table.add({escape(row.strategy), count(row.max_batch).html(), row.factor ? factor(*row.factor).html() : "–",
               row.max_batch > 0 ? bytes_cell(row.peak_bytes, unit) : "–",
               row.next_peak_bytes ? bytes_cell(*row.next_peak_bytes, unit) : "–"},
              &row == &rows.front() ? "plain" : "");
  }
  return table.str();
}

std::string trial_tables(const std::vector<BatchRow>& rows, const ByteUnit& unit) {
  std::string out;
  for (const auto& row : rows) {
    HtmlTable table("Trials, in order: " + row.strategy, {"batch", "fits", fmt::format("peak, {}", unit.name)});
    for (const auto& trial : row.trials) {
      table.add({count(trial.batch).html(), trial.fits ? "yes" : "no",
                 trial.peak_bytes ? bytes_cell(*trial.peak_bytes, unit) : "–"});
    }
    out += table.str();
  }
  return details("All trials", out);
}

}  // namespace

std::string max_batch_section(const Field& document, const Place& place) {
  std::vector<BatchRow> rows;
  const int64_t limit = document["limit_bytes"].bytes();
  int64_t largest = limit;
  for (const Field& item : document["rows"].items()) {
    rows.push_back(read_batch_row(item));
    largest = std::max({largest, rows.back().peak_bytes, rows.back().next_peak_bytes.value_or(0)});
  }
  const ByteUnit unit = unit_for(largest);
  if (rows.empty())
    return fmt::format("<p class=\"finding\">No strategies were tried within {}.</p>\n", with_unit(limit, unit));
  const auto& plain = rows.front();
  const auto& best = *std::max_element(rows.begin(), rows.end(),
                                       [](const BatchRow& a, const BatchRow& b) { return a.max_batch < b.max_batch; });
  std::string finding = fmt::format("Within {}, {} ", with_unit(limit, unit), tagged("b", plain.strategy));
  finding += plain.max_batch == 0 ? "trains no batch" : "trains batches of " + count(plain.max_batch).html();
  if (&best != &plain) {
    finding += fmt::format(", {} of <b>{}</b>{}", tagged("b", best.strategy), count(best.max_batch).html(),
                           best.factor ? ": " + factor(*best.factor).html() + " as many" : "");
  }
  BarChart chart{.bars = {}, .axis_title = "examples in a batch", .limit = {}, .limit_markup = {}};
  for (const auto& row : rows) {
    chart.bars.push_back(
        {.name = row.strategy,
         .value = static_cast<double>(row.max_batch),
         .markup = count(row.max_batch).svg() + (row.factor ? " (" + factor(*row.factor).svg() + ")" : ""),
         .tooltip = fmt::format("{}: {}", row.strategy, grouped(row.max_batch)),
         .is_plain = &row == &plain,
         .is_chosen = &row == &best && &best != &plain});
  }
  return fmt::format("<p class=\"finding\">{}.</p>\n", finding) +
         figure(place.id + "-batches", "Largest batch within the limit",
                "Bars, one for each strategy. The table after the chart has the numbers.",
                [&](Svg& svg) { draw_bars(svg, chart); }) +
         table(rows, unit) + trial_tables(rows, unit);
}

}  // namespace refrain::report
