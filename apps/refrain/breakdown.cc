#include "refrain/breakdown.h"

#include <fmt/format.h>

#include "apps/refrain/html_file.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

/// One batch: parts as estimated, parts as measured, and the measured step's peak.
struct Row {
  int64_t batch = 0;
  MemoryParts estimated, measured;
  Bytes peak = 0;
  Bytes resident_peak = 0;  ///< of the process, less what it had before any tensor
};

std::vector<int64_t> choose_batches(const BreakdownArgs& args) {
  if (args.batches.empty()) {
    const int64_t b = build_model(args.model)->options().batch;
    return {b, 2 * b, 4 * b};
  }
  if (args.model.batch != 0)
    throw InvalidArgument(fmt::format("--batch {}: found --batches as well; leave one out", args.model.batch));
  return args.batches;
}

std::unique_ptr<models::TrainableModel> build(const BreakdownArgs& args, int64_t batch) {
  ModelArgs sizes = args.model;
  sizes.batch = batch;
  auto model = build_model(sizes);
  model->set_strategy(args.strategy);
  return model;
}

models::Batch first_of(const models::Batch& batch, int64_t n) {
  const auto cut = [n](const torch::Tensor& t) { return t.defined() ? t.narrow(0, 0, n) : t; };
  return {cut(batch.input), cut(batch.target)};
}

ActivationCost estimate(const BreakdownArgs& args) {
  constexpr int64_t kSmall = 2, kLarge = 4;
  auto model = build(args, kLarge);
  const auto batch = model->synthetic_batch(args.model.seed);
  return measure_activations([&](int64_t n) { return model->loss(first_of(batch, n)); }, kSmall, kLarge);
}

/// The second step: the optimizer's state is there.
Row measure(const BreakdownArgs& args, int64_t size, const ActivationCost& activations) {
  auto model = build(args, size);
  const auto batch = model->synthetic_batch(args.model.seed);
  auto optimizer = make_optimizer(args.optimizer, 0.0, model->module());
  torch::manual_seed(args.model.seed);
  const auto step = [&] {
    model->loss(batch).backward();
    PhaseScope phase(MemoryPhase::kOptimizer);
    optimizer->step();
  };
  step();
  drop_gradients(model->module());
  release_free_memory();  // of a larger batch before
  MemoryTimeline timeline(model->module(), *optimizer);
  timeline.annotate(MemoryKind::kInput, {batch.input, batch.target});
  step();
  const auto report = timeline.stop();
  Row row{size, estimate_fixed(model->module(), *optimizer), measured_parts(report), report.peak_bytes,
          report.resident_peak() - report.resident_before};
  row.estimated.activations = activations.at(size);
  return row;
}

std::string mib(Bytes bytes) { return fmt::format("{:.2f}", static_cast<double>(bytes) / static_cast<double>(1_MiB)); }

std::string show(const std::vector<Row>& rows) {
  const auto &estimated = rows.front().estimated, &measured = rows.front().measured;
  Table fixed({"MiB", "estimated", "measured"});
  fixed.add({"parameters", mib(estimated.parameters), mib(measured.parameters)});
  fixed.add({"gradients", mib(estimated.gradients), mib(measured.gradients)});
  fixed.add({"optimizer states", mib(estimated.optimizer_states), mib(measured.optimizer_states)});
  fixed.add({"fixed cost", mib(estimated.fixed()), mib(measured.fixed())});
  Table by_batch({"batch", "activations", "measured", "of total", "temporaries", "peak", "resident"});
  for (const auto& row : rows) {
    const auto part = static_cast<double>(row.estimated.activations);
    const double share = 100 * part / (part + static_cast<double>(row.estimated.fixed()));
    by_batch.add({fmt::format("{}", row.batch), mib(row.estimated.activations), mib(row.measured.activations),
                  fmt::format("{:.1f} %", share), mib(row.measured.temporaries), mib(row.peak),
                  mib(row.resident_peak)});
  }
  return fixed.str() + "\n" + by_batch.str();
}

Json parts_json(const MemoryParts& parts) {
  return {{"parameters", parts.parameters},
          {"gradients", parts.gradients},
          {"optimizer_states", parts.optimizer_states},
          {"activations", parts.activations}};
}

Json rows_json(const std::vector<Row>& rows) {
  Json list = Json::array();
  for (const auto& row : rows) {
    Json measured = parts_json(row.measured);
    measured["temporaries"] = row.measured.temporaries;
    list.push_back({{"batch", row.batch},
                    {"estimated", parts_json(row.estimated)},
                    {"measured", measured},
                    {"peak_bytes", row.peak},
                    {"resident_peak_bytes", row.resident_peak}});
  }
  return list;
}

}  // namespace

int run_breakdown(const BreakdownArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  install_memory_tracking();
  const auto batches = choose_batches(args);
  const auto activations = estimate(args);
  std::vector<Row> rows;
  for (const int64_t batch : batches) rows.push_back(measure(args, batch, activations));
  const auto crossover = activations.first_batch_exceeding(rows.front().estimated.fixed());

  const auto model = build(args, batches.front());
  int64_t parameters = 0;
  for (const auto& parameter : model->module().parameters()) parameters += parameter.numel();
  const std::string where = crossover ? fmt::format("activations exceed the fixed cost from batch {} on", *crossover)
                                      : std::string("activations exceed the fixed cost at no batch");
  Json config = config_json(*model);
  config.erase("batch");
  Json document = document_json("breakdown", model->name(), config);
  document["strategy"] = args.strategy;
  document["optimizer"] = args.optimizer;
  document["parameter_count"] = parameters;
  document["rows"] = rows_json(rows);
  document["crossover_batch"] = crossover ? Json(*crossover) : Json();
  publish(document,
          fmt::format("{}, {:L} parameters, strategy {}, {}\n\n{}{}\n", title(*model), parameters, args.strategy,
                      args.optimizer, show(rows), where),
          args.json, args.html);
  return kOk;
}

}  // namespace refrain::cli
