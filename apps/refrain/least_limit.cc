#include "refrain/least_limit.h"

#include <fmt/format.h>

#include <optional>

#include "apps/refrain/html_file.h"
#include "apps/refrain/json_file.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/memory.h"
#include "refrain/torch_error.h"

namespace refrain::cli {
namespace {

/// Of one step under a limit: how many resident bytes the process grows by, none where the step was refused.
using Resident = std::optional<Bytes>;

std::string show(const LeastLimit& found, const std::vector<Resident>& resident) {
  Table table({"limit", "over level", "x lowest", "peak over level", "resident", "ms/step", "overhead", "recomputed",
               "evictions"});
  const double least = static_cast<double>(found.limit - found.level);
  for (size_t i = 0; i < found.costs.size(); ++i) {
    const auto& cost = found.costs[i];
    const Bytes over = cost.limit - found.level;
    std::vector<std::string> cells{format_bytes(cost.limit), format_bytes(over),
                                   fmt::format("{:.2f}", static_cast<double>(over) / least)};
    if (cost.holds) {
      for (const auto& cell : {format_bytes(cost.peak - found.level), resident[i] ? format_bytes(*resident[i]) : "-",
                               fmt::format("{:.1f}", cost.ms), fmt::format("{:.0f} %", 100 * (cost.ratio - 1)),
                               fmt::format("{}", cost.recomputes), fmt::format("{}", cost.evictions)})
        cells.push_back(cell);
    } else {
      cells.emplace_back("does not fit");
      cells.resize(9);
    }
    table.add(cells);
  }
  return table.str();
}

Json cost_json(const LimitCost& cost, const Resident& resident) {
  Json json{{"limit_bytes", cost.limit}, {"fits", cost.holds}};
  if (cost.holds)
    json.update({{"peak_bytes", cost.peak},
                 {"resident_peak_bytes", resident ? Json(*resident) : Json()},
                 {"step_ms_median", cost.ms},
                 {"overhead", cost.ratio - 1},
                 {"recomputes", cost.recomputes},
                 {"evictions", cost.evictions}});
  return json;
}

}  // namespace

int run_least_limit(const LeastLimitArgs& args) {
  check_can_write(args.json, "--json");
  keep_heap();
  install_memory_tracking();
  auto model = build_model(args.model);
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  const auto generator = generator_state();
  LeastLimitOptions options;
  if (!args.multiples.empty()) options.multiples(args.multiples);
  options.tolerance(args.tolerance);
  options.runs(args.iters).cap(MemoryCapOptions().max_overhead(args.max_overhead));
  const auto step = [&] {
    drop_gradients(model->module());
    set_generator_state(generator);
    model->loss(batch).backward();
  };
  const auto found = least_limit(step, options);
  const auto grows = [&](std::optional<Bytes> limit) -> Resident {
    const ResidentWatch resident;
    try {
      std::optional<MemoryCap> cap;
      if (limit) cap.emplace(*limit, options.cap());
      step();
    } catch (const OutOfMemory&) {
      return {};
    }
    return resident.growth();
  };
  const auto plain_resident = grows({});
  std::vector<Resident> resident;
  for (const auto& cost : found.costs) resident.push_back(cost.holds ? grows(cost.limit) : Resident());
  drop_gradients(model->module());

  Json config = config_json(*model);
  config["iters"] = args.iters;
  config["tolerance"] = args.tolerance;
  config["max_overhead"] = args.max_overhead;
  Json document = document_json("least_limit", model->name(), config);
  document.update(
      {{"limit_bytes", found.limit},
       {"refused_bytes", found.refused},
       {"base_bytes", found.level},
       {"plain",
        {{"peak_bytes", found.peak}, {"resident_peak_bytes", *plain_resident}, {"step_ms_median", found.baseline_ms}}},
       {"steps", found.steps},
       {"rows", Json::array()}});
  for (size_t i = 0; i < found.costs.size(); ++i) document["rows"].push_back(cost_json(found.costs[i], resident[i]));
  publish(
      document,
      fmt::format(
          "{}, {} {} a step, {} threads: the lowest limit is {} for all tensors, {} over the level before a step ({}); {} did not fit.\n"
          "Baseline: peak {} over the level, resident {} (of the process, over what was before a step), {:.1f} ms a step. {} steps were run\n{}",
          title(*model), model->units_per_batch(), model->unit(), at::get_num_threads(), format_bytes(found.limit),
          format_bytes(found.limit - found.level), format_bytes(found.level), format_bytes(found.refused - found.level),
          format_bytes(found.peak - found.level), format_bytes(*plain_resident), found.baseline_ms, found.steps,
          show(found, resident)),
      args.json, "");
  return kOk;
}

}  // namespace refrain::cli
