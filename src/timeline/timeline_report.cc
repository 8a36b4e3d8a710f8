#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "base/json_text.h"
#include "refrain/timeline.h"

namespace refrain {
namespace {

constexpr size_t kMostPoints = 4000;
constexpr size_t kTopInJson = 20;

using Levels = std::array<Bytes, kMemoryKinds>;

MemoryKind kind_at(size_t i) { return static_cast<MemoryKind>(i); }

/// Follows the bytes of each kind through the events.
class KindLevels {
 public:
  explicit KindLevels(const MemoryTimelineReport& report) : report_(report) {
    for (const auto& block : report.blocks)
      if (block.preexisting) levels_[static_cast<size_t>(block.kind)] += block.bytes;
  }
  const Levels& now() const { return levels_; }
  void apply(const MemoryEvent& event) {
    const auto& block = report_.blocks[static_cast<size_t>(event.block)];
    levels_[static_cast<size_t>(block.kind)] += event.is_free ? -block.bytes : block.bytes;
  }

 private:
  const MemoryTimelineReport& report_;
  Levels levels_{};
};

/// Levels at one time.
struct Row {
  double time_us;
  Bytes total;
  Levels kinds;
};

// Keeps of each stretch of rows the one with the highest total and the last, for all kinds alike, so that they add up
// at each.
std::vector<Row> thinned(const std::vector<Row>& rows) {
  if (rows.size() <= kMostPoints) return rows;
  const size_t stretch = (2 * rows.size() + kMostPoints - 1) / kMostPoints;
  std::vector<Row> kept;
  for (size_t begin = 0; begin < rows.size(); begin += stretch) {
    const auto first = rows.begin() + static_cast<long>(begin);
    const auto last = rows.begin() + static_cast<long>(std::min(begin + stretch, rows.size()) - 1);
    const auto highest =
        std::max_element(first, last + 1, [](const Row& a, const Row& b) { return a.total < b.total; });
    kept.push_back(*highest);
    if (highest != last) kept.push_back(*last);
  }
  return kept;
}

std::string levels_json(const MemoryTimelineReport& report) {
  KindLevels levels(report);
  std::vector<Row> rows{{0.0, report.base_bytes, levels.now()}};
  for (const auto& event : report.events) {
    levels.apply(event);
    rows.push_back({event.time_us, event.level, levels.now()});
  }
  rows.push_back({report.end_us, rows.back().total, levels.now()});
  rows = thinned(rows);

  std::string points, kinds;
  const auto add = [](std::string& json, double time, Bytes level) {
    json += fmt::format("{}[{:.3f},{}]", json.empty() ? "" : ",", time, level);
  };
  for (const auto& row : rows) add(points, row.time_us, row.total);
  for (size_t k = 0; k < kMemoryKinds; ++k) {
    std::string json;
    bool was_ever_there = false;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Bytes level = rows[i].kinds[k];
      was_ever_there |= level != 0;
      if (i == 0 || i + 1 == rows.size() || level != rows[i - 1].kinds[k]) add(json, rows[i].time_us, level);
    }
    if (was_ever_there) kinds += fmt::format("{}\"{}\":[{}]", kinds.empty() ? "" : ",\n  ", name_of(kind_at(k)), json);
  }
  return fmt::format("\"points\":[{}],\n \"kinds\":{{{}}}", points, kinds);
}

// Keeps of each stretch of samples the highest.
std::string resident_json(const MemoryTimelineReport& report) {
  const auto& all = report.resident;
  const size_t stretch = std::max<size_t>((all.size() + kMostPoints - 1) / kMostPoints, 1);
  std::vector<std::string> points;
  for (size_t begin = 0; begin < all.size(); begin += stretch) {
    const auto first = all.begin() + static_cast<long>(begin);
    const auto end = all.begin() + static_cast<long>(std::min(begin + stretch, all.size()));
    const auto highest = std::max_element(first, end, [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
    points.push_back(fmt::format("[{:.3f},{}]", highest->time_us, highest->bytes));
  }
  return fmt::format("[{}]", fmt::join(points, ","));
}

std::string phases_json(const MemoryTimelineReport& report) {
  std::vector<std::string> spans;
  for (const auto& span : report.phases)
    spans.push_back(fmt::format("{{\"name\":\"{}\",\"begin_us\":{:.3f},\"end_us\":{:.3f}}}", name_of(span.phase),
                                span.begin_us, span.end_us));
  return fmt::format("[{}]", fmt::join(spans, ",\n  "));
}

// `kind`, `op`, `module`, `phase` and `sizes`, without braces.
std::string labels_json(const MemoryBlock& block) {
  return fmt::format("\"kind\":\"{}\",\"op\":{},\"module\":{},\"phase\":\"{}\",\"sizes\":[{}]", name_of(block.kind),
                     json_string(block.op), json_string(block.module),
                     block.preexisting ? "before" : name_of(block.phase), fmt::join(block.sizes, ","));
}

std::string peak_json(const MemoryTimelineReport& report) {
  std::vector<std::string> kinds, top;
  for (size_t k = 0; k < kMemoryKinds; ++k)
    if (report.peak_by_kind[k] != 0)
      kinds.push_back(fmt::format("\"{}\":{}", name_of(kind_at(k)), report.peak_by_kind[k]));
  for (size_t i = 0; i < std::min(kTopInJson, report.peak_blocks.size()); ++i) {
    const auto& block = report.blocks[static_cast<size_t>(report.peak_blocks[i])];
    top.push_back(fmt::format("{{\"bytes\":{},{}}}", block.bytes, labels_json(block)));
  }
  return fmt::format("{{\"t_us\":{:.3f},\"bytes\":{},\"by_kind\":{{{}}},\n  \"top\":[{}]}}", report.peak_us,
                     report.peak_bytes, fmt::join(kinds, ","), fmt::join(top, ",\n   "));
}

std::string trace_of(const MemoryBlock& block, size_t id) {
  const std::string name = block.op.empty() ? std::string(name_of(block.kind)) : std::string(block.op);
  const auto half = [&](char type, double time) {
    return fmt::format(",\n{{\"ph\":\"{}\",\"cat\":\"{}\",\"id\":{},\"name\":{},\"pid\":1,\"tid\":1,\"ts\":{:.3f}",
                       type, name_of(block.kind), id, json_string(name), time);
  };
  return half('b', block.begin_us) + fmt::format(",\"args\":{{\"bytes\":{},{}}}}}", block.bytes, labels_json(block)) +
         half('e', block.end_us) + "}";
}

std::string counters(const Levels& levels, double time) {
  std::string args;
  for (size_t k = 0; k < levels.size(); ++k)
    args += fmt::format("{}\"{}\":{}", k == 0 ? "" : ",", name_of(kind_at(k)), levels[k]);
  return fmt::format(",\n{{\"ph\":\"C\",\"name\":\"bytes\",\"pid\":1,\"ts\":{:.3f},\"args\":{{{}}}}}", time, args);
}

std::string shape(const std::vector<int64_t>& sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

std::string share(Bytes part, Bytes whole) {
  return fmt::format("{:.1f} %", whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

// Lists phases that alternate, as with one recomputation for each block, on one line.
std::string phases_text(const MemoryTimelineReport& report) {
  std::vector<MemoryPhase> order;
  std::array<double, 4> total{};
  std::array<int, 4> count{};
  for (const auto& span : report.phases) {
    const auto phase = static_cast<size_t>(span.phase);
    if (count[phase]++ == 0) order.push_back(span.phase);
    total[phase] += span.end_us - span.begin_us;
  }
  std::vector<std::string> parts;
  for (const auto phase : order) {
    const auto i = static_cast<size_t>(phase);
    parts.push_back(fmt::format("{} {:.1f} ms{}", name_of(phase), total[i] / 1e3,
                                count[i] > 1 ? fmt::format(" in {} pieces", count[i]) : ""));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

MemoryPhase phase_at(const MemoryTimelineReport& report, double time_us) {
  auto phase = MemoryPhase::kForward;
  for (const auto& span : report.phases)
    if (span.begin_us <= time_us) phase = span.phase;
  return phase;
}

}  // namespace

std::string_view name_of(MemoryPhase phase) noexcept {
  constexpr std::string_view kNames[] = {"forward", "recompute", "backward", "optimizer"};
  return kNames[static_cast<size_t>(phase)];
}

std::string_view name_of(MemoryKind kind) noexcept {
  constexpr std::string_view kNames[kMemoryKinds] = {
      "parameter",       "gradient",   "optimizer_state", "buffer",    "input",
      "activation_kept", "recomputed", "temporary",       "workspace", "other"};
  return kNames[static_cast<size_t>(kind)];
}

Bytes MemoryTimelineReport::resident_peak() const {
  Bytes highest = 0;
  for (const auto& sample : resident) highest = std::max(highest, sample.bytes);
  return highest;
}

Bytes MemoryTimelineReport::highest(MemoryKind kind) const {
  KindLevels levels(*this);
  const auto k = static_cast<size_t>(kind);
  Bytes highest = levels.now()[k];
  for (const auto& event : events) {
    levels.apply(event);
    highest = std::max(highest, levels.now()[k]);
  }
  return highest;
}

std::string MemoryTimelineReport::text(int top) const {
  const auto of_system = resident.empty() ? ""
                                          : fmt::format("resident peak {}, of which {} before any tensor\n",
                                                        format_bytes(resident_peak()), format_bytes(resident_before));
  std::string text =
      fmt::format("peak {} ({} bytes) at {:.1f} ms, in {}; {} before, {} allocations\n{}{}\n\nat the peak\n",
                  format_bytes(peak_bytes), peak_bytes, peak_us / 1e3, name_of(phase_at(*this, peak_us)),
                  format_bytes(base_bytes), allocations, of_system, phases_text(*this));
  std::array<size_t, kMemoryKinds> order{};
  for (size_t k = 0; k < order.size(); ++k) order[k] = k;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return peak_by_kind[a] > peak_by_kind[b]; });
  for (const size_t k : order)
    if (peak_by_kind[k] != 0)
      text += fmt::format("  {:<15}  {:>10}  {:>7}\n", name_of(kind_at(k)), format_bytes(peak_by_kind[k]),
                          share(peak_by_kind[k], peak_bytes));
  const size_t shown = std::min(static_cast<size_t>(std::max(top, 0)), peak_blocks.size());
  if (shown == 0) return text;
  text += fmt::format("\nthe largest of {} blocks there\n", peak_blocks.size());
  for (size_t i = 0; i < shown; ++i) {
    const auto& block = blocks[static_cast<size_t>(peak_blocks[i])];
    text += fmt::format("  {:>10}  {:<15}  {:<9}  {:<26}  {:<32}  {}\n", format_bytes(block.bytes), name_of(block.kind),
                        block.preexisting ? "before" : name_of(block.phase), shape(block.sizes),
                        block.module.empty() ? "-" : block.module, block.op);
    text.erase(text.find_last_not_of(" \n") + 1);
    text += '\n';
  }
  return text;
}

std::string MemoryTimelineReport::json() const {
  const auto overhead = measured_overhead ? fmt::format(",\n \"measured_overhead\":{:.6f}", *measured_overhead) : "";
  return fmt::format(
      "{{\"kind\":\"timeline\",\n \"version\":1,\n \"base_bytes\":{},\n \"peak_bytes\":{},\n \"end_us\":{:.3f},\n"
      " \"allocations\":{}{},\n \"phases\":{},\n \"resident_before_bytes\":{},\n \"resident\":{},\n {},\n \"peak\":{}}}\n",
      base_bytes, peak_bytes, end_us, allocations, overhead, phases_json(*this), resident_before, resident_json(*this),
      levels_json(*this), peak_json(*this));
}

std::string MemoryTimelineReport::trace() const {
  std::string json =
      "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
      "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":1,\"args\":{\"name\":\"refrain\"}},\n"
      "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":1,\"tid\":1,\"args\":{\"name\":\"phases\"}}";
  for (const auto& span : phases)
    json += fmt::format(",\n{{\"ph\":\"X\",\"name\":\"{}\",\"pid\":1,\"tid\":1,\"ts\":{:.3f},\"dur\":{:.3f}}}",
                        name_of(span.phase), span.begin_us, span.end_us - span.begin_us);
  KindLevels levels(*this);
  json += counters(levels.now(), 0.0);
  for (const auto& event : events) {
    levels.apply(event);
    json += counters(levels.now(), event.time_us);
  }
  for (const auto& sample : resident)
    json += fmt::format(",\n{{\"ph\":\"C\",\"name\":\"resident\",\"pid\":1,\"ts\":{:.3f},\"args\":{{\"bytes\":{}}}}}",
                        sample.time_us, sample.bytes);
  for (size_t i = 0; i < blocks.size(); ++i) json += trace_of(blocks[i], i);
  return json + "]}\n";
}

}  // namespace refrain
