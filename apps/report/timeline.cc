#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "apps/report/area_chart.h"
#include "apps/report/kinds.h"
#include "apps/report/markup.h"
#include "apps/report/sections.h"

namespace refrain::report {
namespace {

constexpr size_t kTopAtOnce = 8;

struct TopValue {
  int64_t bytes = 0;
  size_t kind = 0;
  std::string op, module, phase;
  std::vector<int64_t> sizes;
};

size_t read_kind(const Field& field, const std::string& id) {
  const auto kind = kind_index(id);
  if (!kind) field.refuse("one of " + kind_ids());
  return *kind;
}

std::vector<Phase> read_phases(const Field& list) {
  std::vector<Phase> phases;
  for (const Field& item : list.items()) {
    Phase phase{item["name"].text(), item["begin_us"].number(), item["end_us"].number()};
    const auto names = {"forward", "recompute", "backward", "optimizer"};
    if (std::find(names.begin(), names.end(), phase.name) == names.end()) {
      item["name"].refuse("forward, recompute, backward or optimizer");
    }
    if (phase.end_us < phase.begin_us) item["end_us"].refuse("a time not before `begin_us`");
    phases.push_back(std::move(phase));
  }
  return phases;
}

// A page from before any tensor may have been freed since: never below 0.
std::vector<LevelPoint> read_resident(const Field& document) {
  const auto list = document.find("resident");
  if (!list) return {};
  const int64_t before = document["resident_before_bytes"].bytes();
  auto points = read_points(*list);
  for (auto& point : points) point.bytes = std::max<int64_t>(point.bytes - before, 0);
  return points;
}

Peak read_peak(const Field& field) {
  Peak peak{field["t_us"].number(), field["bytes"].bytes(), std::vector<int64_t>(kinds().size(), 0)};
  for (const auto& [name, bytes] : field["by_kind"].members()) peak.by_kind[read_kind(bytes, name)] = bytes.bytes();
  return peak;
}

std::vector<TopValue> read_top(const Field& list) {
  std::vector<TopValue> top;
  for (const Field& item : list.items()) {
    TopValue value{.bytes = item["bytes"].bytes(),
                   .kind = read_kind(item["kind"], item["kind"].text()),
                   .op = {},
                   .module = {},
                   .phase = {},
                   .sizes = {}};
    if (const auto op = item.find("op")) value.op = op->text();
    if (const auto module = item.find("module")) value.module = module->text();
    if (const auto phase = item.find("phase")) value.phase = phase->text();
    if (const auto sizes = item.find("sizes")) {
      for (const Field& size : sizes->items()) value.sizes.push_back(size.count());
    }
    top.push_back(std::move(value));
  }
  return top;
}

std::string finding(const AreaChart& chart) {
  const auto& by_kind = chart.peak.by_kind;
  const auto largest = static_cast<size_t>(std::max_element(by_kind.begin(), by_kind.end()) - by_kind.begin());
  std::string phase;
  // recomputation lies within backward: the shortest phase says most
  double shortest = 0;
  for (const auto& candidate : chart.phases) {
    const bool holds = candidate.begin_us <= chart.peak.t_us && chart.peak.t_us <= candidate.end_us;
    if (!holds || (!phase.empty() && candidate.end_us - candidate.begin_us >= shortest)) continue;
    phase = candidate.name;
    shortest = candidate.end_us - candidate.begin_us;
  }
  std::string text =
      fmt::format("Memory peaks at {}, {}&nbsp;ms into the step{}", with_unit(chart.peak.bytes, chart.unit),
                  microseconds_as_ms(chart.peak.t_us).html(), phase.empty() ? "" : ", in " + phase);
  if (by_kind[largest] > 0) {
    text +=
        fmt::format(". Most of it, {}, is <b>{}</b>", with_unit(by_kind[largest], chart.unit), kinds()[largest].name);
    if (2 * static_cast<double>(by_kind[largest]) < static_cast<double>(chart.peak.bytes)) {
      text = text.replace(text.find(". Most of it"), 12, ". The largest part");
    }
  }
  return fmt::format("<p class=\"finding\">{}.</p>\n", text);
}

std::string peak_table(const AreaChart& chart) {
  HtmlTable table("Memory alive at the peak, by kind, in the order of the stack from its top",
                  {"kind", chart.unit.name, "share"});
  for (size_t kind = kinds().size(); kind-- > 0;) {
    const int64_t bytes = chart.peak.by_kind[kind];
    if (bytes == 0) continue;
    table.add({kind_label(kind), bytes_cell(bytes, chart.unit),
               percent(static_cast<double>(bytes), static_cast<double>(chart.peak.bytes)).html()});
  }
  table.add({"all", bytes_cell(chart.peak.bytes, chart.unit), ""}, "sum");
  return table.str();
}

std::string top_table(const std::string& caption, std::span<const TopValue> top, const ByteUnit& unit) {
  HtmlTable table(caption, {"module", "made by", "kind", "in phase", "sizes", unit.name});
  table.text_columns({1, 2, 3, 4});
  for (const auto& value : top) {
    std::string sizes;
    for (const int64_t size : value.sizes) sizes += (sizes.empty() ? "" : "×") + identifier(size).html();
    table.add({value.module.empty() ? "–" : tagged("code", value.module),
               value.op.empty() ? "–" : tagged("code", value.op), kind_label(value.kind),
               value.phase.empty() ? "–" : escape(value.phase),
               sizes.empty() ? "–" : "<span class=\"sizes\">" + sizes + "</span>", bytes_cell(value.bytes, unit)});
  }
  return table.str();
}

std::string phase_table(const AreaChart& chart) {
  HtmlTable table("Phases of the step",
                  {"phase", "begins, ms", "ends, ms", fmt::format("highest level, {}", chart.unit.name)});
  for (const auto& phase : chart.phases) {
    table.add({escape(phase.name), microseconds_as_ms(phase.begin_us).html(), microseconds_as_ms(phase.end_us).html(),
               bytes_cell(highest_within(chart.levels, phase.begin_us, phase.end_us), chart.unit)});
  }
  return table.str();
}

/// For the script that shows the level under the pointer: times, totals, and a list for each kind that occurs.
std::string levels_data(const AreaChart& chart) {
  constexpr size_t kColumns = 240;
  const auto levels = thin_out(chart.levels, kColumns);
  nlohmann::json t = nlohmann::json::array(), total = t, list = t;
  for (const auto& level : levels) {
    t.push_back(level.t_us);
    total.push_back(level.total);
  }
  for (size_t kind = 0; kind < kinds().size(); ++kind) {
    nlohmann::json bytes = nlohmann::json::array();
    bool is_there = false;
    for (const auto& level : levels) {
      bytes.push_back(level.by_kind[kind]);
      is_there = is_there || level.by_kind[kind] != 0;
    }
    if (is_there) list.push_back({kinds()[kind].name, bytes});
  }
  const auto [begin, end] = time_range(chart);
  return nlohmann::json{{"t", t},
                        {"total", total},
                        {"kinds", list},
                        {"begin", begin},
                        {"end", end},
                        {"unit", chart.unit.name},
                        {"bytes", chart.unit.bytes},
                        {"decimals", chart.unit.decimals}}
      .dump();
}

}  // namespace

int64_t timeline_reach(const Field& document) {
  int64_t reach = document["peak_bytes"].bytes();
  for (const auto& point : read_resident(document)) reach = std::max(reach, point.bytes);
  return reach;
}

std::string timeline_section(const Field& document, const Place& place) {
  AreaChart chart{.levels = read_levels(document),
                  .phases = read_phases(document["phases"]),
                  .resident = read_resident(document),
                  .peak = read_peak(document["peak"]),
                  .base_bytes = document["base_bytes"].bytes(),
                  .scale_bytes = place.scale_bytes,
                  .unit = unit_for(std::max(document["peak_bytes"].bytes(), place.scale_bytes))};
  const auto top = read_top(document["peak"]["top"]);
  const std::string strategy = document["strategy"].text();
  std::string out = finding(chart);
  const std::string description = fmt::format(
      "Areas stacked by kind of memory over the time of a step with strategy {}. The peak is {} bytes. The tables after the chart have its numbers.",
      strategy, grouped(chart.peak.bytes));
  out += figure(place.id + "-levels", "Memory over a step, strategy " + strategy, description,
                [&](Svg& svg) { draw_area_chart(svg, chart); });
  const bool is_recomputing = std::any_of(chart.phases.begin(), chart.phases.end(),
                                          [](const Phase& phase) { return phase.name == "recompute"; });
  out += fmt::format("<script type=\"application/json\" data-levels=\"{}-levels\">{}</script>\n", place.id,
                     levels_data(chart));
  const auto overhead = document.find("measured_overhead");
  out +=
      fmt::format("<p class=\"note\">{}Dashed: level before the step, {}. {}The step made {} allocations{}.</p>\n",
                  is_recomputing ? "Second row of marks: recomputation. " : "", with_unit(chart.base_bytes, chart.unit),
                  chart.resident.empty() ? "" : "Line: resident bytes of the process, less those before any tensor. ",
                  count(document["allocations"].count()).html(),
                  overhead ? "; recording them changed its time by " + percent_of_one(overhead->number()).html() : "");
  const auto first = std::span(top).first(std::min(top.size(), kTopAtOnce)),
             rest = std::span(top).subspan(first.size());
  out += "<div class=\"pair\">" + peak_table(chart) +
         top_table("Largest tensors alive at the peak", first, chart.unit) + "</div>\n";
  if (!rest.empty())
    out += details("Further tensors alive at the peak", top_table("Next largest tensors", rest, chart.unit));
  return out + details("Phases in numbers", phase_table(chart));
}

}  // namespace refrain::report
