#include <fmt/format.h>

#include <algorithm>

#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

/// Of one step.
std::vector<std::string> offload_cells(const Measurement& seen) {
  if (!seen.offload) return {"", "", ""};
  const auto& stats = *seen.offload;
  return {
      format_bytes(stats.written_bytes), format_bytes(stats.read_bytes),
      fmt::format("{} ({:.1f})", stats.store_stalls + stats.fetch_stalls, stats.store_stall_ms + stats.fetch_stall_ms)};
}

std::string show(const std::vector<Measurement>& all) {
  const bool any_offload = std::any_of(all.begin(), all.end(), [](const auto& m) { return m.offload.has_value(); });
  std::vector<std::string> columns{"strategy", "after forward", "peak",     "peak saved",   "resident",
                                   "ms/step",  "added ms",      "overhead", "replayed ops", "bit-equal"};
  if (any_offload) columns.insert(columns.end(), {"written", "read", "stalls, ms"});
  const bool any_plan = std::any_of(all.begin(), all.end(), [](const auto& m) { return m.planned.has_value(); });
  if (any_plan) columns.insert(columns.end(), {"planned peak", "planned ms"});
  Table table(columns);
  const auto& plain = all.front();
  for (const auto& seen : all) {
    const double added = median(seen.added_ms);
    std::vector<std::string> row{seen.strategy,
                                 format_bytes(seen.after_forward),
                                 format_bytes(seen.peak),
                                 saved_percent(seen.peak, plain.peak),
                                 format_bytes(seen.resident_peak),
                                 median_and_spread(seen.step_ms),
                                 fmt::format("{:.1f}", added),
                                 fmt::format("{:.0f} %", 100 * added / median(plain.step_ms)),
                                 fmt::format("{}", seen.replayed_ops),
                                 seen.is_bit_equal ? "yes" : "NO"};
    if (any_offload) {
      const auto cells = offload_cells(seen);
      row.insert(row.end(), cells.begin(), cells.end());
    }
    if (any_plan && seen.planned) {
      row.insert(row.end(), {format_bytes(seen.planned->peak()), fmt::format("{:.1f}", seen.planned_ms())});
    } else if (any_plan) {
      row.insert(row.end(), {"", ""});
    }
    table.add(row);
  }
  return table.str();
}

}  // namespace

int run_bench(const BenchArgs& args) {
  if (!args.limits.empty()) return run_limits(args);
  if (!args.depths.empty()) return run_depths(args);
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  install_memory_tracking();
  auto model = build_model(args.model);
  auto all = plan_strategies(*model, args.strategies, Budgets::kAllowed);
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  verify(*model, batch, all);
  measure(*model, batch, args.iters, args.warmup, all);

  Json config = config_json(*model);
  config["iters"] = args.iters;
  config["warmup"] = args.warmup;
  Json strategies = Json::array();
  for (const auto& seen : all) strategies.push_back(strategy_json(seen));
  Json document = document_json("bench", model->name(), config);
  document["strategies"] = strategies;
  publish(
      document,
      fmt::format(
          "{}, {} {} a step, {} steps each, {} threads; bytes over the level before the step; resident: bytes of the process (tensor heap: {})\n{}",
          title(*model), model->units_per_batch(), model->unit(), args.iters, at::get_num_threads(), tensor_heap(),
          show(all)),
      args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
