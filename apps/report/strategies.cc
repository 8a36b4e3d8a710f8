#include "apps/report/strategies.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "apps/report/markup.h"
#include "apps/report/sections.h"
#include "apps/report/svg.h"

namespace refrain::report {
namespace {

/// The peak as a bar, the level after forward within it.
std::string peak_bar(const Strategy& strategy, int64_t largest) {
  const double scale = largest > 0 ? 100.0 / static_cast<double>(largest) : 0;
  return fmt::format(
      "<svg class=\"inline\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
      "<rect class=\"track\" width=\"{}\" height=\"8\"/><rect class=\"fill\" width=\"{}\" height=\"8\"/></svg>",
      coordinate(scale * static_cast<double>(strategy.peak_bytes)),
      coordinate(scale * static_cast<double>(strategy.after_forward_bytes)));
}

}  // namespace

std::vector<Strategy> read_strategies(const Field& list) {
  std::vector<Strategy> strategies;
  for (const Field& item : list.items()) {
    strategies.push_back({.name = item["name"].text(),
                          .after_forward_bytes = item["after_forward_bytes"].bytes(),
                          .peak_bytes = item["peak_bytes"].bytes(),
                          .step_ms = item["step_ms_median"].duration(),
                          .least_step_ms = item["step_ms_min"].duration(),
                          .added_ms = item["added_ms_median"].number(),
                          .spread_ms = read_spread(item),
                          .replayed_ops = item["replayed_ops"].count(),
                          .is_bit_equal = item["bit_equal"].truth()});
  }
  return strategies;
}

int64_t largest_bytes(const std::vector<Strategy>& strategies) {
  int64_t largest = 0;
  for (const auto& strategy : strategies)
    largest = std::max({largest, strategy.peak_bytes, strategy.after_forward_bytes});
  return largest;
}

size_t lowest_peak(const std::vector<Strategy>& strategies) {
  const auto least = std::min_element(strategies.begin(), strategies.end(), [](const Strategy& a, const Strategy& b) {
    return std::tie(a.peak_bytes, a.step_ms) < std::tie(b.peak_bytes, b.step_ms);
  });
  return static_cast<size_t>(least - strategies.begin());
}

std::string strategy_table(const std::string& caption, const std::vector<Strategy>& strategies) {
  const int64_t largest = largest_bytes(strategies);
  const ByteUnit unit = unit_for(largest);
  HtmlTable table(caption, {"strategy", "", fmt::format("after forward, {}", unit.name),
                            fmt::format("peak, {}", unit.name), "peak saved", "step, ms (median)", "fastest, ms",
                            "added, ms", "added", "replayed operators", "bit-equal"});
  for (const auto& strategy : strategies) {
    const auto& plain = strategies.front();
    const bool is_plain = &strategy == &plain;
    table.add(
        {escape(strategy.name), peak_bar(strategy, largest), bytes_cell(strategy.after_forward_bytes, unit),
         bytes_cell(strategy.peak_bytes, unit),
         is_plain ? "–"
                  : saving(static_cast<double>(strategy.peak_bytes), static_cast<double>(plain.peak_bytes)).html(),
         median_and_spread(strategy.step_ms, strategy.spread_ms), milliseconds(strategy.least_step_ms).html(),
         is_plain ? "–" : milliseconds(strategy.added_ms).html(),
         is_plain ? "–" : percent(strategy.added_ms, plain.step_ms).html(), count(strategy.replayed_ops).html(),
         strategy.is_bit_equal ? "yes" : "<strong>NO</strong>"},
        is_plain ? "plain" : "");
  }
  return table.str();
}

}  // namespace refrain::report
