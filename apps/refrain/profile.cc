#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "apps/refrain/traced_file.h"
#include "base/atomic_file.h"
#include "budget/step_state.h"
#include "graph/explain.h"
#include "graph/scale.h"
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

double operators_ms(const graph::Graph& graph) { return static_cast<double>(graph::operators_ns(graph)) / 1e6; }

double backward_ms(const graph::Graph& graph) {
  double sum = 0.0;
  for (const auto& op : graph.ops)
    if (op.backward) sum += static_cast<double>(op.ns) / 1e6;
  return sum;
}

Json top_holders_json(const graph::Explanation& peak) {
  Json list = Json::array();
  for (const auto& holder : peak.holders)
    list.push_back({{"bytes", holder.bytes}, {"op", holder.op}, {"scope", holder.scope}, {"made", holder.made}});
  return list;
}

/// Of the model's batch as it is set.
struct Profiled {
  std::string name;
  StepTrace trace;
  Bytes level = 0;  ///< in use before the step
};

Profiled trace_step(models::TrainableModel& model, const ProfileArgs& args) {
  const auto batch = model.synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  const Bytes level = memory_stats().current;
  const auto step = [&] {
    drop_gradients(model.module());
    model.loss(batch).backward();
  };
  const auto name = fmt::format("{}, {} {} a step", title(model), model.units_per_batch(), model.unit());
  Profiled profiled{name, profile(step, ProfileOptions().runs(args.iters).model(name)), level};
  drop_gradients(model.module());
  return profiled;
}

/// What two batches say of a third one, and that one as traced.
struct Check {
  int64_t batch = 0;
  graph::Graph scaled, traced;
  graph::ScaleError error;
};

/// Two to trace and one to check by. @throws InvalidArgument
std::vector<int64_t> batches_of(const ProfileArgs& args, models::TrainableModel& model) {
  auto batches = args.batches;
  if (args.model.batch != 0) throw InvalidArgument("--batch and --batches: expected one of them");
  if (batches.size() == 2) batches.push_back(2 * std::max(batches[0], batches[1]) - std::min(batches[0], batches[1]));
  const std::set<int64_t> different(batches.begin(), batches.end());
  if (batches.size() != 3 || different.size() != 3)
    throw InvalidArgument(
        fmt::format("--batches {}: expected two or three different sizes, e.g. 4,8", fmt::join(args.batches, ",")));
  for (const auto batch : batches) model.set_batch(batch);  // all of them, before anything runs
  return batches;
}

std::string off(double part) { return part == 0.0 ? "exact" : fmt::format("{:.2g} % off at worst", 100.0 * part); }

int profile_batches(const ProfileArgs& args, models::TrainableModel& model) {
  const auto batches = batches_of(args, model);
  std::vector<TracedBatch> traces;
  Table table({"batch", "operators", "ms", "peak", "evictable"});
  Json rows = Json::array();
  model.loss(model.synthetic_batch(args.model.seed)).backward();  // what is slow once would be in the first trace
  const auto show = [&](const std::string& name, const graph::Graph& graph) {
    table.add({name, fmt::format("{}", graph.ops.size()), fmt::format("{:.1f}", operators_ms(graph)),
               format_bytes(graph::plain_peak(graph)), format_bytes(evictable_of(graph).bytes)});
  };
  for (const auto batch : batches) {
    model.set_batch(batch);
    traces.push_back({batch, trace_step(model, args).trace.state().graph});
    const auto& graph = traces.back().graph;
    show(fmt::format("{}", batch), graph);
    rows.push_back({{"batch", batch},
                    {"operators", graph.ops.size()},
                    {"operators_ms", operators_ms(graph)},
                    {"peak_bytes", graph::plain_peak(graph)}});
  }
  Check check{.batch = batches.back(), .scaled = {}, .traced = std::move(traces.back().graph), .error = {}};
  traces.pop_back();
  check.scaled = scaled_step(title(model), traces, check.batch);
  check.error = graph::check(check.scaled, check.traced);
  write_file_atomically(args.output, batches_json(title(model), traces));

  show(fmt::format("{}, scaled", check.batch), check.scaled);
  if (args.json != "-") {
    fmt::print("{}: batches {} and {} traced, scaling checked at {}\n{}", title(model), batches[0], batches[1],
               check.batch, table.str());
    fmt::print("bytes at each point of the step: {}; of each value: {}\n", off(check.error.worst_peak),
               off(check.error.worst_value));
    if (check.error.worst_peak > 0.0) fmt::print("If that is too far off, trace the batch that you plan for.\n");
    fmt::print("Next:\n  refrain plan {0} --batch {1} --budget 0.5 -o plan.json\n", args.output,
               2 * std::max(batches[0], batches[1]));
  }
  Json document = document_json("profile", model.name(), config_json(model));
  document["config"].erase("batch");
  document["batches"] = rows;
  document["check"] = {{"batch", check.batch},
                       {"peak_bytes", graph::plain_peak(check.traced)},
                       {"scaled_peak_bytes", graph::plain_peak(check.scaled)},
                       {"worst_peak", check.error.worst_peak},
                       {"worst_value", check.error.worst_value},
                       {"operators_ms", operators_ms(check.traced)},
                       {"scaled_operators_ms", operators_ms(check.scaled)}};
  write_json(args.json, document);
  return kOk;
}

}  // namespace

int run_profile(const ProfileArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.output, "--output");
  install_memory_tracking();
  auto model = build_model(args.model);
  if (!args.batches.empty()) return profile_batches(args, *model);
  const auto [name, trace, level] = trace_step(*model, args);
  trace.save(args.output);

  const auto& graph = trace.state().graph;
  const auto evictable = evictable_of(graph);
  const auto peak = graph::explain(graph, graph::empty_schedule(graph), kMostHolders);
  if (args.json != "-") {
    fmt::print("{}: {} operators, {:.1f} ms, of that {} in backward\n", name, trace.operators(), trace.operators_ms(),
               share(backward_ms(graph), trace.operators_ms()));
    fmt::print("peak {}, {} over the level before the step; {} of {} values are evictable, {} in total\n{}",
               format_bytes(trace.peak()), format_bytes(trace.peak() - level), evictable.values, graph.values.size(),
               format_bytes(evictable.bytes), graph::to_text(peak));
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
  document["holders"] = top_holders_json(peak);
  write_json(args.json, document);
  return kOk;
}

}  // namespace refrain::cli
