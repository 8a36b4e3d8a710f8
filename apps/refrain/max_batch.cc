#include <fmt/format.h>

#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "apps/refrain/trials.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

std::string show(const std::vector<MaxBatch>& all) {
  Table table({"strategy", "largest batch", "factor", "peak", "resident", "peak of one more", "trials"});
  const int64_t plain = all.front().batch;
  for (const auto& found : all) {
    const double factor = static_cast<double>(found.batch) / static_cast<double>(std::max<int64_t>(plain, 1));
    table.add({found.strategy, fmt::format("{}", found.batch), plain > 0 ? fmt::format("{:.2f}", factor) : "-",
               found.batch > 0 ? format_bytes(found.peak) : "-",
               found.batch > 0 ? format_bytes(found.resident_peak) : "-",
               found.next_batch > 0 ? format_bytes(found.next_peak) : "-", fmt::format("{}", found.trials.size())});
  }
  return table.str();
}

}  // namespace

int run_max_batch(const MaxBatchArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  if (args.model.batch != 0)
    throw InvalidArgument(fmt::format("--batch {}: max-batch searches for it; leave it out", args.model.batch));
  install_memory_tracking();
  const Bytes limit = parse_limit(args.memory_limit);
  auto model = build_model(args.model);
  const auto planned = plan_strategies(*model, args.strategies);
  torch::manual_seed(args.model.seed);
  Trials trials(*model, args.optimizer, args.model.seed, limit);
  std::vector<MaxBatch> all;
  for (const auto& strategy : planned) all.push_back(find_max_batch(trials, strategy.strategy));
  check_any_fits(all, trials);

  Json rows = Json::array();
  for (const auto& found : all) rows.push_back(max_batch_json(found, all.front().batch));
  Json config = config_json(*model);
  config.erase("batch");
  config["optimizer"] = args.optimizer;
  Json document = document_json("max_batch", model->name(), config);
  document["limit_bytes"] = limit;
  document["rows"] = rows;
  publish(document,
          fmt::format("{}, {}, all tensors of a training step within {}; each batch was run, and one more\n{}",
                      title(*model), args.optimizer, format_bytes(limit), show(all)),
          args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
