#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/json_text.h"
#include "refrain/activation_checkpointing.h"

namespace refrain {
namespace {

std::string line(const RegionProfile& region, std::string_view name, size_t width) {
  return fmt::format("{:<{}}  {:>6}  {:>10.3f}  {:>10}  {:>12.3f}  {:>10}  {:>10}\n", name, width, region.calls,
                     region.forward_ms, region.recomputes, region.recompute_ms, format_bytes(region.input_bytes),
                     format_bytes(region.kept_bytes));
}

}  // namespace

std::string ActivationReport::text() const {
  const auto name = [](const RegionProfile& region) {
    return region.scope.empty() ? "(no ModuleScope)" : region.scope;
  };
  std::string text;
  if (!regions.empty()) {
    RegionProfile sum;
    size_t width = 6;
    for (const auto& region : regions) {
      width = std::max(width, name(region).size());
      sum.calls += region.calls;
      sum.recomputes += region.recomputes;
      sum.forward_ms += region.forward_ms;
      sum.recompute_ms += region.recompute_ms;
      sum.input_bytes += region.input_bytes;
      sum.kept_bytes += region.kept_bytes;
    }
    text += fmt::format("{:<{}}  {:>6}  {:>10}  {:>10}  {:>12}  {:>10}  {:>10}\n", "region", width, "calls",
                        "forward ms", "recomputes", "recompute ms", "inputs", "kept");
    for (const auto& region : regions) text += line(region, name(region), width);
    text += line(sum, "all", width);
  }
  for (const auto& arena : arenas)
    text += fmt::format("arena of {} slots of {}: {} in use, {} at most\n", arena.slots, format_bytes(arena.slot_bytes),
                        arena.in_use, arena.most_used);
  return text.empty() ? "no region was profiled\n" : text;
}

std::string ActivationReport::json() const {
  std::vector<std::string> region_rows, arena_rows;
  for (const auto& region : regions)
    region_rows.push_back(
        fmt::format("{{\"scope\":{},\"calls\":{},\"recomputes\":{},\"forward_ms\":{:.6f},\"recompute_ms\":{:.6f},"
                    "\"input_bytes\":{},\"kept_bytes\":{}}}",
                    json_string(region.scope), region.calls, region.recomputes, region.forward_ms, region.recompute_ms,
                    region.input_bytes, region.kept_bytes));
  for (const auto& arena : arenas)
    arena_rows.push_back(fmt::format("{{\"slot_bytes\":{},\"slots\":{},\"in_use\":{},\"most_used\":{}}}",
                                     arena.slot_bytes, arena.slots, arena.in_use, arena.most_used));
  return fmt::format("{{\"regions\":[{}],\"arenas\":[{}]}}", fmt::join(region_rows, ","), fmt::join(arena_rows, ","));
}

}  // namespace refrain
