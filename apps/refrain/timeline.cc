#include "refrain/timeline.h"

#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "apps/refrain/budget_strategy.h"
#include "apps/refrain/html_file.h"
#include "apps/refrain/steps.h"
#include "base/atomic_file.h"
#include "refrain/memory.h"
#include "refrain/memory_budget.h"
#include "refrain/memory_cap.h"

namespace refrain::cli {
namespace {

/// A training step under a timeline, and what a step takes with one and without.
struct Watched {
  MemoryTimelineReport report;
  std::vector<double> plain_ms, added_ms;
};

double run_step(models::TrainableModel& model, const models::Batch& batch, torch::optim::Optimizer& optimizer) {
  const auto begin = std::chrono::steady_clock::now();
  model.loss(batch).backward();
  {
    PhaseScope phase(MemoryPhase::kOptimizer);
    optimizer.step();
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  drop_gradients(model.module());
  return took.count();
}

double run_watched(models::TrainableModel& model, const models::Batch& batch, torch::optim::Optimizer& optimizer,
                   Watched& watched) {
  MemoryTimeline timeline(model.module(), optimizer);
  timeline.annotate(MemoryKind::kInput, {batch.input}, "input");
  timeline.annotate(MemoryKind::kInput, {batch.target}, "target");
  const double took = run_step(model, batch, optimizer);
  watched.report = timeline.stop();
  return took;
}

/// Steps with and without a timeline in turn, so that a machine that slows down slows both. Before each an untimed one:
/// making a report leaves the caches in another state than a step does.
Watched watch(models::TrainableModel& model, const models::Batch& batch, torch::optim::Optimizer& optimizer,
              const TimelineArgs& args) {
  Watched watched;
  for (int i = 0; i < args.warmup; ++i) run_step(model, batch, optimizer);
  const auto timed = [&](bool is_watched) {
    run_step(model, batch, optimizer);
    return is_watched ? run_watched(model, batch, optimizer, watched) : run_step(model, batch, optimizer);
  };
  for (int i = 0; i < args.iters; ++i) {
    const bool watched_first = i % 2 == 1;
    const double first = timed(watched_first), second = timed(!watched_first);
    watched.plain_ms.push_back(watched_first ? second : first);
    watched.added_ms.push_back(watched_first ? first - second : second - first);
  }
  watched.report.measured_overhead = median(watched.added_ms) / median(watched.plain_ms);
  return watched;
}

}  // namespace

int run_timeline(const TimelineArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  check_can_write(args.trace, "--trace");
  install_memory_tracking();
  keep_heap();
  auto model = build_model(args.model);
  const bool is_auto = args.strategy == "auto";
  if (is_auto != !args.memory_limit.empty())
    throw InvalidArgument(
        fmt::format("--strategy {}: found {} --memory-limit; auto evicts under a limit, others have none",
                    args.strategy, is_auto ? "no" : "a"));
  set_model_strategy(*model, is_auto ? "none" : args.strategy);
  const auto batch = model->synthetic_batch(args.model.seed);
  auto optimizer = make_optimizer(args.optimizer, 0.0, model->module());
  torch::manual_seed(args.model.seed);
  std::optional<MemoryCap> cap;
  if (is_auto) cap.emplace(parse_bytes(args.memory_limit));
  std::optional<MemoryBudget> budget;
  if (is_budget(args.strategy)) budget.emplace(as_budget(budget_of(args.strategy)));
  const auto watched = watch(*model, batch, *optimizer, args);
  const auto& report = watched.report;

  if (args.json != "-" && args.html != "-" && args.trace != "-") {
    fmt::print(
        "{}, {} {} a step, strategy {}, {}, {} threads: one training step\n{}\n"
        "recording added {:+.1f} % to a step of {:.1f} ms (medians of {} pairs)\n",
        title(*model), model->units_per_batch(), model->unit(), args.strategy, args.optimizer, at::get_num_threads(),
        report.text(), 100 * *report.measured_overhead, median(watched.plain_ms), args.iters);
  }
  if (args.trace == "-") {
    fmt::print("{}", report.trace());
  } else if (!args.trace.empty()) {
    write_file_atomically(args.trace, report.trace());
  }
  Json document = Json::parse(report.json());
  document["model"] = model->name();
  document["config"] = config_json(*model);
  document["config"]["optimizer"] = args.optimizer;
  document["machine"] = machine_json();
  document["strategy"] = args.strategy;
  write_json(args.json, document);
  write_html(args.html, {document});
  return kOk;
}

}  // namespace refrain::cli
