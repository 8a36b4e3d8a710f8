#include <fmt/format.h>

#include <algorithm>

#include "apps/refrain/steps.h"
#include "budget/step_state.h"
#include "graph/explain.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/memory_budget.h"

namespace refrain::cli {
namespace {

constexpr size_t kMostHolders = 8;

struct Evictable {
  int64_t values = 0, bytes = 0;
};

Evictable evictable_of(const graph::Graph& graph) {
  Evictable sum;
  for (const auto& value : graph.values) {
    if (!value.evictable) continue;
    ++sum.values;
    sum.bytes += value.bytes;
  }
  return sum;
}

std::string share(double part, double of) { return fmt::format("{:.0f} %", 100.0 * part / std::max(of, 1e-9)); }

double backward_ms(const graph::Graph& graph) {
  double sum = 0.0;
  for (const auto& op : graph.ops)
    if (op.backward) sum += static_cast<double>(op.ns) / 1e6;
  return sum;
}

Json holders_json(const graph::Explanation& peak) {
  Json list = Json::array();
  for (const auto& holder : peak.holders)
    list.push_back({{"bytes", holder.bytes}, {"op", holder.op}, {"scope", holder.scope}, {"made", holder.made}});
  return list;
}

}  // namespace

int run_profile(const ProfileArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.output, "--output");
  install_memory_tracking();
  auto model = build_model(args.model);
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  const Bytes level = memory_stats().current;
  const auto step = [&] {
    drop_gradients(model->module());
    model->loss(batch).backward();
  };
  const auto name = fmt::format("{}, {} {} a step", title(*model), model->units_per_batch(), model->unit());
  const auto trace = profile(step, {.runs = args.iters, .model = name});
  trace.save(args.output);

  const auto& graph = trace.state().graph;
  const auto evictable = evictable_of(graph);
  const auto peak = graph::explain(graph, graph::empty_schedule(graph), kMostHolders);
  if (args.json != "-") {
    fmt::print("{}: {} operators, {:.1f} ms, of that {} in backward\npeak {}, {} over the level before; {} of {} values can leave, {} in all\n{}",
               name, trace.operators(), trace.operators_ms(), share(backward_ms(graph), trace.operators_ms()), format_bytes(trace.peak()),
               format_bytes(trace.peak() - level), evictable.values, graph.values.size(), format_bytes(evictable.bytes),
               graph::to_text(peak));
    fmt::print("Next:\n  refrain plan {0} --budget 0.5 -o plan.json\n  refrain pareto {0}\n", args.output);
  }
  Json document = document_json("profile", model->name(), config_json(*model));
  document["operators"] = trace.operators();
  document["operators_ms"] = trace.operators_ms();
  document["backward_ms"] = backward_ms(graph);
  document["level_bytes"] = level;
  document["peak_bytes"] = trace.peak();
  document["values"] = graph.values.size();
  document["evictable_values"] = evictable.values;
  document["evictable_bytes"] = evictable.bytes;
  document["holders"] = holders_json(peak);
  write_json(args.json, document);
  return kOk;
}

}  // namespace refrain::cli
