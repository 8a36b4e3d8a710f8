#include <fmt/format.h>

#include <algorithm>

#include "apps/report/bars.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

struct Candidate {
  std::string strategy;
  int64_t peak_bytes = 0;
  std::optional<bool> fits;  ///< where the document does not say: as the peak and the limit
  bool is_predicted = false;
  std::optional<double> overhead;
  std::optional<int64_t> max_batch;
};

Candidate read_candidate(const Field& field) {
  Candidate candidate{.strategy = field["strategy"].text(),
                      .peak_bytes = field["peak_bytes"].bytes(),
                      .fits = {},
                      .overhead = {},
                      .max_batch = {}};
  if (const auto fits = field.find("fits")) candidate.fits = fits->truth();
  if (const auto is_predicted = field.find("peak_is_predicted")) candidate.is_predicted = is_predicted->truth();
  if (const auto overhead = field.find("overhead")) candidate.overhead = overhead->number();
  if (const auto max_batch = field.find("max_batch")) candidate.max_batch = max_batch->count();
  return candidate;
}

std::string finding(bool fits_plainly, const std::optional<Candidate>& choice, int64_t limit, const ByteUnit& unit) {
  std::string text = fits_plainly ? "The baseline fits in " : "The baseline does not fit in ";
  text += with_unit(limit, unit);
  if (!choice) return text + ", and no strategy that was tried fits.";
  text += fmt::format(". Use {}: it peaks at {}", tagged("b", choice->strategy), with_unit(choice->peak_bytes, unit));
  if (choice->overhead && *choice->overhead != 0)
    text += " and " + adds_to_the_step(*choice->overhead, percent_of_one(*choice->overhead));
  if (choice->max_batch) text += fmt::format("; batches of up to {} fit", count(*choice->max_batch).html());
  return text + ".";
}

std::string candidate_table(const std::vector<Candidate>& candidates, const std::optional<Candidate>& choice,
                            int64_t limit, const ByteUnit& unit) {
  HtmlTable table("Candidates",
                  {"strategy", fmt::format("peak, {}", unit.name), "fits", "added time", "largest batch"});
  for (const auto& candidate : candidates) {
    table.add(
        {escape(candidate.strategy), (candidate.is_predicted ? "about " : "") + bytes_cell(candidate.peak_bytes, unit),
         candidate.fits.value_or(candidate.peak_bytes <= limit) ? "yes" : "no",
         candidate.overhead ? percent_of_one(*candidate.overhead).html() : "–",
         candidate.max_batch ? count(*candidate.max_batch).html() : "–"},
        choice && choice->strategy == candidate.strategy ? "chosen" : "");
  }
  return table.str();
}

}  // namespace

std::string advice_section(const Field& document, const Place& place) {
  const int64_t limit = document["limit_bytes"].bytes();
  const bool fits_plainly = document["fits_plainly"].truth();
  std::vector<Candidate> candidates;
  int64_t largest = limit;
  for (const Field& item : document["candidates"].items()) {
    candidates.push_back(read_candidate(item));
    largest = std::max(largest, candidates.back().peak_bytes);
  }
  std::optional<Candidate> choice;
  std::string recipe;
  if (const auto field = document.find("choice")) {
    choice = read_candidate(*field);
    largest = std::max(largest, choice->peak_bytes);
    if (const auto command = field->find("command"))
      recipe += "<h3>Command</h3>\n<pre><code>" + escape(command->text()) + "</code></pre>\n";
    if (const auto code = field->find("code"))
      recipe += "<h3>Code</h3>\n<pre><code>" + escape(code->text()) + "</code></pre>\n";
  }
  const ByteUnit unit = unit_for(largest);
  std::string out = fmt::format("<p class=\"finding\">{}</p>\n", finding(fits_plainly, choice, limit, unit));
  std::string reasons;
  for (const Field& reason : document["reasons"].items()) reasons += "<li>" + escape(reason.text()) + "</li>\n";
  if (!reasons.empty()) out += "<h3>Reasons</h3>\n<ul class=\"reasons\">\n" + reasons + "</ul>\n";
  out += recipe;
  if (candidates.empty()) return out;

  BarChart chart{.bars = {},
                 .axis_title = fmt::format("peak, {}", unit.name),
                 .limit = unit.of(limit),
                 .limit_markup = "limit " + number_of(limit, unit).svg()};
  for (const auto& candidate : candidates) {
    chart.bars.push_back(
        {.name = candidate.strategy,
         .value = unit.of(candidate.peak_bytes),
         .markup =
             number_of(candidate.peak_bytes, unit).svg() +
             (candidate.overhead && *candidate.overhead > 0 ? "  +" + percent_of_one(*candidate.overhead).svg() : ""),
         .tooltip = fmt::format("{}: {} bytes", candidate.strategy, grouped(candidate.peak_bytes)),
         .is_plain = false,
         .is_chosen = choice && choice->strategy == candidate.strategy});
  }
  out += figure(place.id + "-candidates", "Peak of each candidate, with the limit",
                "Bars, one for each candidate, and a line at the limit. The table after the chart has the numbers.",
                [&](Svg& svg) { draw_bars(svg, chart); });
  return out + candidate_table(candidates, choice, limit, unit);
}

}  // namespace refrain::report
