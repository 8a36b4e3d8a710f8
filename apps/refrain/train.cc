#include <fmt/format.h>

#include <bit>
#include <chrono>
#include <cstdio>
#include <limits>
#include <new>
#include <optional>

#include "apps/refrain/data.h"
#include "apps/refrain/failures.h"
#include "apps/refrain/progress.h"
#include "apps/refrain/state_file.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/trials.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {
namespace {

/// What a run is made of; what it has shown so far.
struct Run {
  const TrainArgs& args;
  std::unique_ptr<models::TrainableModel> model = nullptr;
  std::unique_ptr<torch::optim::Optimizer> optimizer = nullptr;
  std::unique_ptr<DataSource> data = nullptr;
  std::optional<Bytes> limit = std::nullopt;
  int64_t first_step = 0;
  std::vector<float> losses = {};
  std::vector<double> step_ms = {};
  double total_ms = 0.0;

  int64_t steps_done() const { return first_step + static_cast<int64_t>(losses.size()); }
  double units_per_second() const {
    return 1e3 * static_cast<double>(model->units_per_batch()) * static_cast<double>(losses.size()) / total_ms;
  }
};

/// What must agree on resuming, so that going on is going on.
Json identity(const Run& run) {
  return {{"model", run.model->name()},
          {"sizes", config_json(*run.model)},
          {"optimizer", run.args.optimizer.empty() ? "adamw" : run.args.optimizer}};
}

Run prepare(const TrainArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.save, "--save");
  install_memory_tracking();
  Run run{.args = args};
  if (!args.memory_limit.empty()) run.limit = parse_bytes(args.memory_limit);
  run.model = build_model(args.model);
  run.model->set_strategy(args.strategy);
  run.data = open_data(args.data, *run.model, args.model.seed);
  run.optimizer = make_optimizer(args.optimizer, args.lr, run.model->module());
  torch::manual_seed(args.model.seed);
  if (!args.resume.empty()) {
    run.first_step = load_state(args.resume, identity(run), run.model->module(), *run.optimizer);
    if (args.lr > 0) {
      for (auto& group : run.optimizer->param_groups()) group.options().set_lr(args.lr);
    }
    if (run.first_step >= args.steps) {
      throw InvalidArgument(fmt::format("--steps {}: '{}' is at step {} already; expected more steps than that",
                                        args.steps, args.resume, run.first_step));
    }
  }
  if (run.limit) check_fixed_cost(*run.limit, *run.model, *run.optimizer);
  return run;
}

void train(Run& run) {
  const MemoryLimit limit(run.limit.value_or(std::numeric_limits<Bytes>::max()));
  reset_peak_memory();
  Progress progress(run.first_step, run.args.steps, run.args.json == "-");
  while (run.steps_done() < run.args.steps) {
    const auto begin = std::chrono::steady_clock::now();
    const auto loss = train_step(*run.model, *run.optimizer, run.data->batch(run.steps_done()));
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    run.step_ms.push_back(took.count());
    run.total_ms += took.count();
    run.losses.push_back(loss.item<float>());
    progress.update(run.steps_done(),
                    fmt::format("loss {:.4f}  {:.0f} {}/s  peak {}", run.losses.back(), run.units_per_second(),
                                run.model->unit(), format_bytes(memory_stats().peak)));
  }
}

/// @param failure  empty if the run ended well.
Json report(const Run& run, const std::string& failure) {
  Json losses = Json::array(), bits = Json::array();
  for (float loss : run.losses) {
    losses.push_back(loss);
    bits.push_back(fmt::format("0x{:08x}", std::bit_cast<uint32_t>(loss)));
  }
  Json json;
  json["status"] = failure.empty() ? "done" : "out_of_memory";
  if (!failure.empty()) json["message"] = failure;
  json["model"] = run.model->name();
  json["config"] = config_json(*run.model);
  json["data"] = run.args.data;
  json["strategy"] = run.args.strategy;
  json["optimizer"] = run.args.optimizer.empty() ? "adamw" : run.args.optimizer;
  json["machine"] = machine_json();
  json["first_step"] = run.first_step;
  json["steps"] = run.steps_done();
  json["memory_limit_bytes"] = run.limit ? Json(*run.limit) : Json();
  json["peak_bytes"] = memory_stats().peak;
  json["step_ms_median"] = median(run.step_ms);
  json["unit"] = run.model->unit();
  json["units_per_second"] = run.step_ms.empty() ? Json() : Json(run.units_per_second());
  json["losses"] = losses;
  json["loss_bits"] = bits;
  return json;
}

int stopped(const Run& run, const std::string& cause) {
  const std::string message = fmt::format(
      "out of memory: {} (step {}, strategy {}); raise --memory-limit, lower --batch{}", cause, run.steps_done() + 1,
      run.args.strategy, run.args.strategy == "none" ? ", or use --strategy per_block" : "");
  write_json(run.args.json, report(run, message));
  fmt::print(stderr, "refrain: {}\n", message);
  return kOutOfMemory;
}

}  // namespace

int run_train(const TrainArgs& args) {
  Run run = prepare(args);
  try {
    train(run);
  } catch (const c10::Error& error) {
    if (!is_allocation_failure(error)) throw;
    return stopped(run, allocation_failure_cause(error));
  } catch (const std::bad_alloc&) {
    return stopped(run, "the system refused an allocation");
  }
  if (!args.save.empty()) {
    save_state(args.save, identity(run), run.model->module(), *run.optimizer, run.steps_done());
  }
  if (args.json != "-") {
    fmt::print("{} steps of {}, strategy {}: loss {:.4f} -> {:.4f}, {:.1f} ms/step, {:.0f} {}/s, peak {}{}\n",
               run.losses.size(), run.model->name(), args.strategy, run.losses.front(), run.losses.back(),
               median(run.step_ms), run.units_per_second(), run.model->unit(), format_bytes(memory_stats().peak),
               run.limit ? " of " + format_bytes(*run.limit) : "");
  }
  write_json(args.json, report(run, ""));
  return kOk;
}

}  // namespace refrain::cli
