#include "apps/refrain/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "apps/refrain/steps.h"
#include "apps/refrain/verify.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"
#include "refrain/tape.h"

namespace refrain::cli {
namespace {

double run_step(models::TrainableModel& model, const models::Batch& batch, Gradients gradients, Measurement& seen) {
  if (gradients == Gradients::kMade) drop_gradients(model.module());
  set_model_strategy(model, seen.strategy);
  MemoryScope memory;
  std::optional<MemoryCap> recording;
  std::optional<MemoryBudget> budget;
  if (seen.is_following) recording.emplace(Bytes{1} << 62, MemoryCapOptions().always_record(true));
  if (seen.planned) budget.emplace(seen.planned->plan);
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

PlannedBudget plan_step_of(models::TrainableModel& model, const models::Batch& batch, Gradients gradients,
                           const std::string& strategy) {
  set_model_strategy(model, strategy);
  if (gradients == Gradients::kMade) drop_gradients(model.module());
  return plan_budget(
      strategy, [&] { model.loss(batch).backward(); }, model.name());
}

void count_replays(models::TrainableModel& model, const models::Batch& batch, Gradients gradients, Measurement& seen) {
  const bool was_timing = set_op_timing(true);
  const TapeStats before = tape_stats();
  set_model_strategy(model, seen.strategy);
  const auto* store = model.offload_store();
  if (store) store->reset_stats();
  if (gradients == Gradients::kMade) drop_gradients(model.module());  // what the step makes is not there before
  const ResidentWatch resident;
  run_step(model, batch, gradients, seen);
  seen.resident_peak = resident.growth();
  const TapeStats after = tape_stats();
  set_op_timing(was_timing);
  if (store) seen.offload = store->stats();
  seen.replayed_ops = after.replayed_ops - before.replayed_ops;
  seen.replayed_kernel_ms = after.replayed_forward_ms - before.replayed_forward_ms;
}

bool needs_following(const std::vector<Measurement>& all) {
  return std::any_of(all.begin(), all.end(), [](const auto& m) { return is_budget(m.strategy); });
}

void note_following(std::vector<Measurement>& all) {
  double took = 0.0;
  for (const auto& seen : all)
    if (seen.is_following) took = std::max(0.0, median(seen.added_ms));
  for (auto& seen : all)
    if (seen.planned) seen.following_ms = took;
}

}  // namespace

std::vector<Measurement> plan_strategies(models::TrainableModel& model, const std::vector<std::string>& asked,
                                         Budgets budgets) {
  std::vector<Measurement> all{{.strategy = "none"}};
  for (const auto& strategy : asked.empty() ? model.strategies() : asked) {
    if (budgets == Budgets::kAllowed)
      set_model_strategy(model, strategy);
    else
      model.set_strategy(strategy);
    const bool is_known = std::any_of(all.begin(), all.end(), [&](const auto& m) { return m.strategy == strategy; });
    if (!is_known) all.push_back({.strategy = strategy});
  }
  return all;
}

void verify(models::TrainableModel& model, const models::Batch& batch, std::vector<Measurement>& all) {
  std::vector<std::string> names;
  for (const auto& seen : all) names.push_back(seen.strategy);
  const auto verified = verify_strategies(model, batch, names, 1);
  for (size_t i = 0; i < all.size(); ++i) all[i].is_bit_equal = verified[i].is_bit_equal();
}

void measure(models::TrainableModel& model, const models::Batch& batch, int iters, int warmup,
             std::vector<Measurement>& all, Gradients gradients) {
  const bool measures_following = needs_following(all);
  if (measures_following) all.push_back({.strategy = "budget:1.0", .is_following = true});
  const size_t n = all.size();
  if (gradients == Gradients::kThere) {
    drop_gradients(model.module());
    model.loss(batch).backward();
  }
  for (auto& seen : all) {
    if (!is_budget(seen.strategy)) continue;
    keep_heap();
    seen.planned = plan_step_of(model, batch, gradients, seen.strategy);
  }
  for (int i = 0; i < warmup; ++i) {
    for (auto& seen : all) run_step(model, batch, gradients, seen);
  }
  for (int i = 0; i < iters; ++i) {
    for (size_t k = 0; k < n; ++k) {
      auto& seen = all[(k + static_cast<size_t>(i)) % n];
      seen.step_ms.push_back(run_step(model, batch, gradients, seen));
    }
    for (auto& seen : all) seen.added_ms.push_back(seen.step_ms.back() - all.front().step_ms.back());
  }
  note_following(all);
  if (measures_following) all.pop_back();
  for (auto& seen : all) count_replays(model, batch, gradients, seen);
  drop_gradients(model.module());
}

Json offload_json(const OffloadStats& stats) {
  return {{"values", stats.values},
          {"written_bytes", stats.written_bytes},
          {"read_bytes", stats.read_bytes},
          {"refused", stats.refused},
          {"prefetched", stats.prefetched},
          {"store_stalls", stats.store_stalls},
          {"store_stall_ms", stats.store_stall_ms},
          {"fetch_stalls", stats.fetch_stalls},
          {"fetch_stall_ms", stats.fetch_stall_ms}};
}

Json strategy_json(const Measurement& seen) {
  Json json{{"name", seen.strategy},
            {"after_forward_bytes", seen.after_forward},
            {"peak_bytes", seen.peak},
            {"resident_peak_bytes", seen.resident_peak},
            {"step_ms_median", median(seen.step_ms)},
            {"step_ms_min", *std::min_element(seen.step_ms.begin(), seen.step_ms.end())},
            {"step_ms_spread", spread(seen.step_ms)},
            {"added_ms_median", median(seen.added_ms)},
            {"replayed_ops", seen.replayed_ops},
            {"replayed_kernel_ms", seen.replayed_kernel_ms},
            {"bit_equal", seen.is_bit_equal}};
  if (seen.planned)
    json["plan"] = {{"peak_bytes", seen.planned->peak()},
                    {"level_bytes", seen.planned->level},
                    {"added_ms", seen.planned->plan.added_ms()},
                    {"following_ms", seen.following_ms},
                    {"lower_bound_ms", seen.planned->plan.lower_bound_ms()}};
  if (seen.offload) json["offload"] = offload_json(*seen.offload);
  return json;
}

std::string saved_percent(Bytes bytes, Bytes plain) {
  const double saved = 1.0 - static_cast<double>(bytes) / static_cast<double>(std::max<Bytes>(plain, 1));
  return fmt::format("{:.0f} %", std::round(100 * saved) + 0.0);
}

std::string median_and_spread(const std::vector<double>& values) {
  return fmt::format("{:.1f} ± {:.1f}", median(values), spread(values));
}

}  // namespace refrain::cli
