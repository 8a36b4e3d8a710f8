#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>

#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "apps/refrain/verify.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"

namespace refrain::cli {
namespace {

/// Steps under one limit. Bytes are over the level before the step.
struct Row {
  int percent = 0;
  Bytes limit = 0, peak = 0;
  std::vector<double> step_ms = {}, added_ms = {};
  MemoryCapStats cost = {};         ///< of the last step
  bool is_bit_equal = true;
  std::string refused = {};         ///< why it does not fit
};

int parse_percent(const std::string& text) {
  int percent = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, percent);
  if (error != std::errc() || rest + 1 != end || *rest != '%' || percent < 1 || percent > 1000)
    throw InvalidArgument(fmt::format("--limits {}: expected parts of the plain peak from 1% to 1000%, as '100%,60%,40%'", text));
  return percent;
}

/// Loss and gradients of one step.
using Result = std::vector<torch::Tensor>;

class Steps {
 public:
  Steps(models::TrainableModel& model, const models::Batch& batch) : model_(model), batch_(batch), generator_(generator_state()) {}

  struct Seen {
    double ms = 0.0;
    Bytes peak = 0;
    Result result;
  };

  /// Forward and backward from the same generator's state.
  Seen run() {
    drop_gradients(model_.module());
    set_generator_state(generator_);
    Seen seen;
    MemoryScope memory;
    const auto begin = std::chrono::steady_clock::now();
    auto loss = model_.loss(batch_);
    loss.backward();
    seen.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    seen.peak = memory.peak();
    seen.result.push_back(loss.detach());
    for (const auto& parameter : model_.module().parameters()) seen.result.push_back(parameter.grad());
    return seen;
  }

  void run_under(Row& row, const Seen& plain, bool counts) {
    drop_gradients(model_.module());
    try {
      const MemoryCap cap(memory_stats().current + row.limit);
      auto seen = run();
      row.cost = cap.stats();
      row.peak = std::max(row.peak, seen.peak);
      row.is_bit_equal &=
          std::equal(plain.result.begin(), plain.result.end(), seen.result.begin(), seen.result.end(), is_bit_equal);
      if (!counts) return;
      row.step_ms.push_back(seen.ms);
      row.added_ms.push_back(seen.ms - plain.ms);
    } catch (const OutOfMemory& error) {
      row.refused = fmt::format("{} short", format_bytes(error.missing()));
    }
  }

 private:
  models::TrainableModel& model_;
  const models::Batch& batch_;
  torch::Tensor generator_;
};

double choosing_part(const Row& row) { return static_cast<double>(row.cost.choosing_ns) / 1e6 / row.step_ms.back(); }

std::string show(const std::vector<Row>& rows, const Row& plain) {
  Table table({"limit", "bytes", "peak", "ms/step", "overhead", "evictions", "recomputes", "choosing", "bit-equal"});
  const double plain_ms = median(plain.step_ms);
  table.add({"none", "", format_bytes(plain.peak), median_and_spread(plain.step_ms), "", "", "", "", ""});
  for (const auto& row : rows) {
    const auto percent = fmt::format("{} %", row.percent);
    if (row.step_ms.empty()) {
      table.add({percent, format_bytes(row.limit), row.refused, "", "", "", "", "", ""});
      continue;
    }
    table.add({percent, format_bytes(row.limit), format_bytes(row.peak), median_and_spread(row.step_ms),
               fmt::format("{:.0f} %", 100 * median(row.added_ms) / plain_ms), fmt::format("{}", row.cost.evictions),
               fmt::format("{}", row.cost.recomputes), fmt::format("{:.1f} %", 100 * choosing_part(row)),
               row.is_bit_equal ? "yes" : "NO"});
  }
  return table.str();
}

Json row_json(const Row& row) {
  return {{"percent", row.percent},
          {"limit_bytes", row.limit},
          {"fits", !row.step_ms.empty()},
          {"peak_bytes", row.peak},
          {"step_ms_median", row.step_ms.empty() ? Json() : Json(median(row.step_ms))},
          {"added_ms_median", row.step_ms.empty() ? Json() : Json(median(row.added_ms))},
          {"evictions", row.cost.evictions},
          {"recomputes", row.cost.recomputes},
          {"choosing_ns", row.cost.choosing_ns},
          {"bit_equal", row.is_bit_equal}};
}

}  // namespace

int run_limits(const BenchArgs& args) {
  check_can_write(args.json, "--json");
  if (!args.html.empty()) throw InvalidArgument("--html: bench --limits draws no page yet; use --json");
  std::vector<Row> rows;
  for (const auto& text : args.limits) rows.push_back({.percent = parse_percent(text)});
  install_memory_tracking();
  auto model = build_model(args.model);
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  Steps steps(*model, batch);
  Row plain;
  plain.peak = steps.run().peak;
  for (auto& row : rows) row.limit = plain.peak * row.percent / 100;
  for (int i = 0; i < args.warmup + args.iters; ++i) {
    const bool counts = i >= args.warmup;
    const auto seen = steps.run();
    if (counts) plain.step_ms.push_back(seen.ms);
    for (auto& row : rows)
      if (row.refused.empty()) steps.run_under(row, seen, counts);
  }
  drop_gradients(model->module());

  Json config = config_json(*model);
  config["iters"] = args.iters;
  config["warmup"] = args.warmup;
  Json list = Json::array();
  for (const auto& row : rows) list.push_back(row_json(row));
  Json document = document_json("limits", model->name(), config);
  document["plain_peak_bytes"] = plain.peak;
  document["plain_step_ms_median"] = median(plain.step_ms);
  document["rows"] = list;
  publish(document,
          fmt::format("{}, {} {} a step, {} steps each, {} threads; bytes over the level before the step\n{}", title(*model),
                      model->units_per_batch(), model->unit(), args.iters, at::get_num_threads(), show(rows, plain)),
          args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
