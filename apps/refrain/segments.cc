#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "apps/refrain/html_file.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/sequential.h"

namespace refrain::cli {
namespace {

/// Bytes of a row of equal layers: s segments keep their s - 1 first inputs, and all that the last one saves, which is no region.
struct Costs {
  int64_t layers = 0;
  double boundary = 0;  ///< what a layer returns to the next
  double layer = 0;     ///< what a layer of the baseline saves
  double outside = 0;   ///< what the model keeps outside of the row, and what backward needs beside activations

  Bytes peak(int64_t segments) const {
    const auto last = Segments(segments).split(layers).back();
    return std::llround(outside + static_cast<double>(segments - 1) * boundary +
                        static_cast<double>(last.end - last.begin) * layer);
  }
};

/// From the baseline's step, and from a segment for each layer, which differ in all layers but the last.
Costs find_costs(const models::ModelOptions& sizes, int64_t layers, const Measurement& plain,
                 const Measurement& each_layer) {
  Costs costs{.layers = layers};
  costs.boundary = 4.0 * static_cast<double>(sizes.batch * std::max<int64_t>(sizes.seq, 1) * sizes.width);
  const auto kept_more = static_cast<double>(plain.after_forward - each_layer.after_forward);
  costs.layer = costs.boundary + kept_more / static_cast<double>(std::max<int64_t>(layers - 1, 1));
  costs.outside = static_cast<double>(plain.peak) - static_cast<double>(layers) * costs.layer;
  return costs;
}

int64_t nearest_to_root(int64_t layers) { return std::llround(std::sqrt(static_cast<double>(layers))); }

/// One and all layers, powers of two, the suggested number, and the neighbours of the square root.
std::vector<int64_t> choose_counts(const std::vector<int64_t>& asked, int64_t layers) {
  std::set<int64_t> counts{1, layers};
  for (const int64_t count : asked) {
    if (count > layers) {
      throw InvalidArgument(fmt::format("--segments {}: expected 1 to {}, the number of layers", count, layers));
    }
    counts.insert(count);
  }
  if (asked.empty()) {
    const int64_t root = nearest_to_root(layers);
    counts.insert(suggest_segments(layers));
    for (int64_t count = root - 1; count <= root + 1; ++count) counts.insert(std::clamp<int64_t>(count, 1, layers));
    for (int64_t count = 2; count < layers; count *= 2) counts.insert(count);
  }
  return {counts.begin(), counts.end()};
}

struct Row {
  std::string name;
  int64_t segments = 0;
  const Measurement& seen;
  Bytes predicted = 0;
};

Json row_json(const Row& row) {
  return {{"segments", row.segments},
          {"after_forward_bytes", row.seen.after_forward},
          {"peak_bytes", row.seen.peak},
          {"resident_peak_bytes", row.seen.resident_peak},
          {"predicted_peak_bytes", row.predicted},
          {"step_ms_median", median(row.seen.step_ms)},
          {"step_ms_spread", spread(row.seen.step_ms)},
          {"added_ms_median", median(row.seen.added_ms)}};
}

std::string show(const std::vector<Row>& rows, int64_t layers) {
  Table table(
      {"segments", "after forward", "peak", "peak saved", "predicted peak", "resident", "ms/step", "overhead", ""});
  const auto& plain = rows.front().seen;
  Bytes least = plain.peak;
  for (const auto& row : rows) least = std::min(least, row.seen.peak);
  for (const auto& row : rows) {
    std::vector<std::string> marks;
    const bool is_cut = &row != &rows.front() && &row != &rows.back();
    if (is_cut && row.segments == nearest_to_root(layers)) marks.emplace_back("sqrt(n)");
    if (is_cut && row.segments == suggest_segments(layers)) marks.emplace_back("suggested");
    if (row.seen.peak == least) marks.emplace_back("lowest peak");
    const std::string mark = fmt::format("{}", fmt::join(marks, ", "));
    table.add({row.name, format_bytes(row.seen.after_forward), format_bytes(row.seen.peak),
               saved_percent(row.seen.peak, plain.peak), format_bytes(row.predicted),
               format_bytes(row.seen.resident_peak), median_and_spread(row.seen.step_ms),
               fmt::format("{:.0f} %", 100 * median(row.seen.added_ms) / median(plain.step_ms)), mark});
  }
  return table.str();
}

}  // namespace

int run_segments(const SegmentsArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  install_memory_tracking();
  auto model = build_model(args.model);
  const int64_t layers = model->row_length();
  if (layers == 0) {
    throw InvalidArgument(fmt::format(
        "model '{}': found no row of equal layers to cut; expected one of mlp, gpt, gptsmall, blocks, blocks-small; "
        "'refrain bench {}' shows its strategies",
        model->name(), model->name()));
  }
  const auto counts = choose_counts(args.segments, layers);
  std::vector<Measurement> all{{.strategy = "none"}, {.strategy = "per_layer"}};
  for (const int64_t count : counts) all.push_back({.strategy = fmt::format("segments:{}", count)});
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  measure(*model, batch, args.iters, args.warmup, all, Gradients::kThere);

  const Measurement &plain = all[0], &per_layer = all[1];
  const auto costs = find_costs(model->options(), layers, plain, all.back());
  std::vector<Row> rows{{"baseline", 0, plain, costs.peak(1)}};
  for (size_t i = 0; i < counts.size(); ++i) {
    rows.push_back({fmt::format("{}", counts[i]), counts[i], all[i + 2], costs.peak(counts[i])});
  }
  rows.push_back({"per layer", layers, per_layer, costs.peak(1)});

  Json list = Json::array();
  for (size_t i = 1; i + 1 < rows.size(); ++i) list.push_back(row_json(rows[i]));
  Json config = config_json(*model);
  config["iters"] = args.iters;
  config["warmup"] = args.warmup;
  Json document = document_json("segments", model->name(), config);
  document["layers"] = layers;
  document["sqrt_segments"] = std::sqrt(static_cast<double>(layers));
  document["boundary_bytes"] = std::llround(costs.boundary);
  document["layer_bytes"] = std::llround(costs.layer);
  document["rows"] = list;
  document["plain"] = row_json(rows.front());
  document["per_layer"] = row_json(rows.back());
  publish(document,
          fmt::format(
              "{}, {} layers that each save {} and return {}; {} steps each, {} threads; bytes over the level before "
              "the step, which includes gradients; resident: of the process\n{}",
              model->name(), layers, format_bytes(std::llround(costs.layer)),
              format_bytes(std::llround(costs.boundary)), args.iters, at::get_num_threads(), show(rows, layers)),
          args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
