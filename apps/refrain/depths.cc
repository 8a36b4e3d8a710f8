#include <fmt/format.h>

#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

struct Row {
  int64_t depth = 0;
  Bytes gradients = 0;
  std::vector<Measurement> strategies;
};

Row measure_depth(const BenchArgs& args, int64_t depth, Json& config) {
  ModelArgs sizes = args.model;
  sizes.depth = depth;
  auto model = build_model(sizes);
  const bool is_row = model->row_length() > 0 && args.strategies.empty();
  const auto asked = is_row ? std::vector<std::string>{"segments", "per_layer"} : args.strategies;
  Row row{depth, 0, plan_strategies(*model, asked, Budgets::kAllowed)};
  for (const auto& parameter : model->module().parameters()) row.gradients += static_cast<Bytes>(parameter.nbytes());
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  verify(*model, batch, row.strategies);
  measure(*model, batch, args.iters, args.warmup, row.strategies);
  config = config_json(*model);
  return row;
}

std::string show(const std::vector<Row>& rows) {
  Table table({"depth", "strategy", "activations", "activations saved", "peak", "peak saved", "resident", "ms/step",
               "overhead", "bit-equal"});
  for (const auto& row : rows) {
    const auto& plain = row.strategies.front();
    for (const auto& seen : row.strategies) {
      table.add({fmt::format("{}", row.depth), seen.strategy, format_bytes(seen.after_forward),
                 saved_percent(seen.after_forward, plain.after_forward), format_bytes(seen.peak),
                 saved_percent(seen.peak, plain.peak), format_bytes(seen.resident_peak),
                 median_and_spread(seen.step_ms),
                 fmt::format("{:.0f} %", 100 * median(seen.added_ms) / median(plain.step_ms)),
                 seen.is_bit_equal ? "yes" : "NO"});
    }
  }
  const auto& last = rows.back();
  return table.str() + fmt::format(
                           "activations: bytes after forward. The peak includes gradients, at the end {} at depth {} "
                           "with any strategy\n",
                           format_bytes(last.gradients), last.depth);
}

}  // namespace

int run_depths(const BenchArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  if (args.model.depth != 0)
    throw InvalidArgument(fmt::format("--depth {}: found --depths as well; leave one out", args.model.depth));
  install_memory_tracking();
  Json config;
  std::vector<Row> rows;
  for (const int64_t depth : args.depths) rows.push_back(measure_depth(args, depth, config));

  Json list = Json::array();
  for (const auto& row : rows) {
    Json strategies = Json::array();
    for (const auto& seen : row.strategies) strategies.push_back(strategy_json(seen));
    list.push_back({{"depth", row.depth}, {"gradient_bytes", row.gradients}, {"strategies", strategies}});
  }
  config.erase("depth");
  config["iters"] = args.iters;
  config["warmup"] = args.warmup;
  Json document = document_json("depths", args.model.name, config);
  document["rows"] = list;
  publish(
      document,
      fmt::format("{}, {} steps each, {} threads; bytes over the level before the step; resident: of the process\n{}",
                  args.model.name, args.iters, at::get_num_threads(), show(rows)),
      args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
