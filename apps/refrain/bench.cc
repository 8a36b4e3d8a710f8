#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "apps/refrain/html_file.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "apps/refrain/verify.h"
#include "refrain/memory.h"
#include "refrain/tape.h"

namespace refrain::cli {
namespace {

/// What was seen of one strategy. Bytes are over the level before the step, gradients and outputs included.
struct Measurement {
  std::string strategy;
  Bytes after_forward = 0, peak = 0;
  std::vector<double> step_ms = {}, added_ms = {};
  int64_t replayed_ops = 0;
  double replayed_kernel_ms = 0.0;
  bool is_bit_equal = false;
};

double run_step(models::TrainableModel& model, const models::Batch& batch, Measurement& seen) {
  drop_gradients(model.module());
  model.set_strategy(seen.strategy);
  MemoryScope memory;
  const auto begin = std::chrono::steady_clock::now();
  {
    auto loss = model.loss(batch);
    seen.after_forward = std::max(seen.after_forward, memory.current());
    loss.backward();
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  seen.peak = std::max(seen.peak, memory.peak());
  return took.count();
}

void count_replays(models::TrainableModel& model, const models::Batch& batch, Measurement& seen) {
  const bool was_timing = set_op_timing(true);
  const TapeStats before = tape_stats();
  run_step(model, batch, seen);
  const TapeStats after = tape_stats();
  set_op_timing(was_timing);
  seen.replayed_ops = after.replayed_ops - before.replayed_ops;
  seen.replayed_kernel_ms = static_cast<double>(after.replayed_forward_ns - before.replayed_forward_ns) / 1e6;
}

/// One timed step of each strategy in turn, as often as asked; who goes first moves on by one each time. So a machine
/// that slows down slows all of them, and added time is the median of differences to the plain step of the same turn.
void measure(models::TrainableModel& model, const models::Batch& batch, const BenchArgs& args,
             std::vector<Measurement>& all) {
  const size_t n = all.size();
  for (int i = 0; i < args.warmup; ++i) {
    for (auto& seen : all) run_step(model, batch, seen);
  }
  for (int i = 0; i < args.iters; ++i) {
    for (size_t k = 0; k < n; ++k) {
      auto& seen = all[(k + static_cast<size_t>(i)) % n];
      seen.step_ms.push_back(run_step(model, batch, seen));
    }
    for (auto& seen : all) seen.added_ms.push_back(seen.step_ms.back() - all.front().step_ms.back());
  }
  for (auto& seen : all) count_replays(model, batch, seen);
}

std::vector<Measurement> plan(models::TrainableModel& model, const std::vector<std::string>& asked) {
  std::vector<Measurement> all{{.strategy = "none"}};
  for (const auto& strategy : asked.empty() ? model.strategies() : asked) {
    model.set_strategy(strategy);
    const bool is_known = std::any_of(all.begin(), all.end(), [&](const auto& m) { return m.strategy == strategy; });
    if (!is_known) all.push_back({.strategy = strategy});
  }
  return all;
}

Json strategy_json(const Measurement& seen) {
  return {{"name", seen.strategy},
          {"after_forward_bytes", seen.after_forward},
          {"peak_bytes", seen.peak},
          {"step_ms_median", median(seen.step_ms)},
          {"step_ms_min", *std::min_element(seen.step_ms.begin(), seen.step_ms.end())},
          {"added_ms_median", median(seen.added_ms)},
          {"replayed_ops", seen.replayed_ops},
          {"replayed_kernel_ms", seen.replayed_kernel_ms},
          {"bit_equal", seen.is_bit_equal}};
}

std::string show(const std::vector<Measurement>& all) {
  Table table({"strategy", "after forward", "peak", "peak saved", "ms/step", "added ms", "overhead", "replayed ops",
               "bit-equal"});
  const auto& plain = all.front();
  for (const auto& seen : all) {
    const double saved = 1.0 - static_cast<double>(seen.peak) / static_cast<double>(std::max<Bytes>(plain.peak, 1));
    const double added = median(seen.added_ms);
    table.add({seen.strategy, format_bytes(seen.after_forward), format_bytes(seen.peak),
               fmt::format("{:.0f} %", 100 * saved), fmt::format("{:.1f}", median(seen.step_ms)),
               fmt::format("{:.1f}", added), fmt::format("{:.0f} %", 100 * added / median(plain.step_ms)),
               fmt::format("{}", seen.replayed_ops), seen.is_bit_equal ? "yes" : "NO"});
  }
  return table.str();
}

}  // namespace

int run_bench(const BenchArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  install_memory_tracking();
  auto model = build_model(args.model);
  auto all = plan(*model, args.strategies);
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  std::vector<std::string> names;
  for (const auto& seen : all) names.push_back(seen.strategy);
  const auto verified = verify_strategies(*model, batch, names, 1);
  for (size_t i = 0; i < all.size(); ++i) all[i].is_bit_equal = verified[i].is_bit_equal();
  measure(*model, batch, args, all);

  Json config = config_json(*model);
  config["iters"] = args.iters;
  config["warmup"] = args.warmup;
  Json strategies = Json::array();
  for (const auto& seen : all) strategies.push_back(strategy_json(seen));
  if (args.json != "-" && args.html != "-") {
    fmt::print("{}, {} {} a step, {} steps each, {} threads; bytes over the level before the step\n{}", model->name(),
               model->units_per_batch(), model->unit(), args.iters, at::get_num_threads(), show(all));
  }
  const Json document = {{"kind", "bench"},
                         {"version", 1},
                         {"model", model->name()},
                         {"config", config},
                         {"machine", machine_json()},
                         {"strategies", strategies}};
  write_json(args.json, document);
  write_html(args.html, {document});
  return kOk;
}

}  // namespace refrain::cli
