#include <fmt/format.h>

#include <bit>
#include <chrono>
#include <cstdio>
#include <new>
#include <optional>

#include "apps/refrain/budget_strategy.h"
#include "apps/refrain/data.h"
#include "apps/refrain/failures.h"
#include "apps/refrain/launch.h"
#include "apps/refrain/measure.h"
#include "apps/refrain/progress.h"
#include "apps/refrain/schedule.h"
#include "apps/refrain/state_file.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/trials.h"
#include "refrain/breakdown.h"
#include "refrain/data_parallel.h"
#include "refrain/error.h"
#include "refrain/largest_batch.h"
#include "refrain/memory.h"
#include "refrain/memory_cap.h"

namespace refrain::cli {
namespace {

/// What a run is made of; what it has shown so far.
struct Run {
  const TrainArgs& args;
  std::unique_ptr<models::TrainableModel> model = nullptr;
  std::unique_ptr<torch::optim::Optimizer> optimizer = nullptr;
  GradScaler scaler = GradScaler();
  std::unique_ptr<DataSource> data = nullptr;
  std::optional<Budget> limit = std::nullopt;
  int64_t rank = 0, ranks = 1;
  std::optional<ProcessGroup> group = std::nullopt;  ///< none with one rank
  std::unique_ptr<DataParallel<torch::nn::Module>> parallel = nullptr;
  Schedule schedule = {};
  int64_t first_step = 0, last_step = 0;
  std::optional<MemoryBudgetStats> budget = std::nullopt;  ///< at the end, of strategy budget
  Bytes resident_base = 0;                                 ///< before the model was made
  std::vector<float> losses = {};
  std::vector<double> step_ms = {};
  double total_ms = 0.0;

  /// No regions: a cap evicts and recomputes what does not fit.
  bool is_auto() const { return args.strategy == "auto"; }
  int64_t steps_done() const { return first_step + static_cast<int64_t>(losses.size()); }
  Json limit_of(Budget::Kind kind) const { return limit && limit->kind() == kind ? Json(limit->bytes()) : Json(); }
  int64_t batches_per_step() const { return ranks * args.accumulate; }
  double units_per_second() const {
    const auto units = static_cast<double>(model->units_per_batch() * batches_per_step());
    return 1e3 * units * static_cast<double>(losses.size()) / total_ms;
  }
};

/// What must agree on resuming, so that going on is going on.
Json identity(const Run& run) {
  Json json{{"model", run.model->name()},
            {"sizes", config_json(*run.model)},
            {"optimizer", run.args.optimizer.empty() ? "adamw" : run.args.optimizer},
            {"ranks", run.ranks},
            {"accumulate", run.args.accumulate},
            {"clip_norm", run.args.clip_norm},
            {"order", run.args.epochs > 0 ? "by epoch" : "random"},
            {"schedule", run.args.schedule},
            {"warmup", run.args.warmup}};
  if (run.args.schedule == "cosine") {
    json["min_lr"] = run.args.min_lr;
    json["steps"] = run.last_step;
  }
  return json;
}

int64_t count_steps(const Run& run) {
  const auto& args = run.args;
  if (args.steps > 0) return args.steps;
  const int64_t examples = run.data->examples();
  if (examples == 0) {
    throw InvalidArgument(
        fmt::format("--epochs {}: data '{}' has no end; use --steps, or data from files", args.epochs, args.data));
  }
  const int64_t per_step = run.model->options().batch * run.batches_per_step();
  return (args.epochs * examples + per_step - 1) / per_step;
}

/// Another one for each rank, that of the seed for rank 0.
void seed_generator(const Run& run) {
  torch::manual_seed(run.args.model.seed + static_cast<uint64_t>(run.rank) * 0x9e3779b97f4a7c15U);
}

void resume(Run& run) {
  const auto position = load_state(run.args.resume, identity(run), run.model->module(), *run.optimizer, run.scaler);
  set_generator_state(position.generators.at(static_cast<size_t>(run.rank)));
  run.first_step = position.step;
  if (run.args.lr <= 0) run.schedule.base = position.lr;
  if (run.first_step >= run.last_step) {
    throw InvalidArgument(fmt::format("--steps {}: '{}' is at step {} already; expected more steps than that",
                                      run.last_step, run.args.resume, run.first_step));
  }
}

void check_options(const TrainArgs& args) {
  if (args.steps == 0 && args.epochs == 0)
    throw InvalidArgument("--steps is required, or --epochs for passes over the data");
  if (args.steps > 0 && args.epochs > 0) throw InvalidArgument("--steps and --epochs: expected one of them");
  if (args.save_every > 0 && args.save.empty())
    throw InvalidArgument("--save-every: expected --save with it, the file to write");
  if (args.min_lr > 0 && args.schedule != "cosine")
    throw InvalidArgument("--min-lr: expected --schedule cosine with it; a constant rate stays");
  check_can_write(args.json, "--json");
  check_can_write(args.save, "--save");
}

Run prepare(const TrainArgs& args, const ProcessGroupOptions& place) {
  check_options(args);
  install_memory_tracking();
  Run run{.args = args, .rank = place.rank(), .ranks = place.world_size()};
  if (!args.memory_limit.empty()) run.limit = Budget::bytes(parse_bytes(args.memory_limit));
  if (!args.process_limit.empty()) run.limit = Budget::process(parse_bytes(args.process_limit));
  run.resident_base = memory_stats().resident;
  run.model = build_model(args.model);
  if (run.is_auto() && !run.limit && args.available == 0.0)
    throw InvalidArgument(
        "--strategy auto: found no --memory-limit; expected one, e.g. 300MiB, or --process-limit or --available");
  set_model_strategy(*run.model, run.is_auto() ? "none" : args.strategy);
  run.data = open_data(args.data, *run.model, args.model.seed, args.epochs > 0 ? Order::kByEpoch : Order::kRandom);
  run.optimizer = make_optimizer(args.optimizer, args.lr, run.model->module());
  run.scaler = make_scaler(*run.model);
  run.last_step = count_steps(run);
  const bool falls = args.schedule == "cosine";
  if (falls && args.warmup >= run.last_step) {
    throw InvalidArgument(
        fmt::format("--warmup {}: expected less than the {} steps of the run", args.warmup, run.last_step));
  }
  run.schedule = {.base = run.optimizer->param_groups()[0].options().get_lr(),
                  .least = args.min_lr,
                  .warmup = args.warmup,
                  .steps = falls ? run.last_step : 0};
  seed_generator(run);
  if (!args.resume.empty()) resume(run);
  if (args.weight_decay >= 0) set_weight_decay(*run.optimizer, args.weight_decay);
  if (run.limit && run.limit->kind() == Budget::Kind::kBytes)
    check_fixed_cost(run.model->module(), *run.optimizer, run.limit->bytes(), "--memory-limit");
  if (args.available > 0.0)
    run.limit = Budget::available(args.available);  // with the model made: it is not free any more
  if (run.ranks > 1) {
    run.group = init_process_group(place);
    // one layout of buckets from the first step on, so that a resumed run adds in the same order
    run.parallel = std::make_unique<DataParallel<torch::nn::Module>>(
        run.model->module(), *run.group, DataParallelOptions().rebuild_buckets(false).gradient_as_bucket_view(true));
  }
  return run;
}

/// By rank 0; the others say where their generators are.
void save(const Run& run) {
  if (run.args.save.empty()) return;
  const auto mine = generator_state();
  const Position position{.step = run.steps_done(),
                          .lr = run.schedule.base,
                          .generators = run.group ? run.group->all_gather(mine) : std::vector<torch::Tensor>{mine}};
  if (run.rank != 0) return;
  save_state(run.args.save, identity(run), run.model->module(), *run.optimizer, run.scaler, position);
}

/// One step, and the mean of its loss over ranks.
float step(Run& run) {
  const int64_t number = run.steps_done();
  const auto batch = [&](int64_t i) {
    return run.data->batch((number * run.args.accumulate + i) * run.ranks + run.rank);
  };
  set_learning_rate(*run.optimizer, run.schedule.at(number));
  auto loss = train_step(*run.model, *run.optimizer, run.scaler,
                         {.batch = batch,
                          .accumulate = run.args.accumulate,
                          .clip_norm = run.args.clip_norm,
                          .parallel = run.parallel.get()});
  if (!run.group) return loss.item<float>();
  run.group->all_reduce(loss);
  return loss.item<float>() / static_cast<float>(run.ranks);
}

void train(Run& run) {
  std::optional<MemoryLimit> limit;
  std::optional<MemoryCap> cap;  // a limit of its own, which it lifts to recompute what was evicted
  std::unique_ptr<MemoryBudget> budget;
  if (is_budget(run.args.strategy)) budget = std::make_unique<MemoryBudget>(as_budget(budget_of(run.args.strategy)));
  if (run.is_auto()) {
    cap.emplace(*run.limit);
  } else if (run.limit) {
    limit.emplace(*run.limit);
  }
  reset_peak_memory();
  Progress progress(run.first_step, run.last_step, run.args.json == "-" || run.rank != 0);
  while (run.steps_done() < run.last_step) {
    const auto begin = std::chrono::steady_clock::now();
    const float loss = step(run);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    run.step_ms.push_back(took.count());
    run.total_ms += took.count();
    run.losses.push_back(loss);
    progress.update(run.steps_done(),
                    fmt::format("loss {:.4f}  {:.0f} {}/s  peak {}", run.losses.back(), run.units_per_second(),
                                run.model->unit(), format_bytes(memory_stats().peak)));
    const bool is_due = run.args.save_every > 0 && run.steps_done() % run.args.save_every == 0;
    if (is_due && run.steps_done() < run.last_step) save(run);
  }
  if (budget) run.budget = budget->stats();
}

/// @param failure  empty if the run ended well.
Json report(const Run& run, const std::string& failure) {
  Json losses = Json::array(), bits = Json::array();
  for (float loss : run.losses) {
    losses.push_back(loss);
    bits.push_back(fmt::format("0x{:08x}", std::bit_cast<uint32_t>(loss)));
  }
  Json json = new_document("train");
  json["status"] = failure.empty() ? "done" : "out_of_memory";
  if (!failure.empty()) json["message"] = failure;
  json["model"] = run.model->name();
  json["config"] = config_json(*run.model);
  if (const auto* store = run.model->offload_store()) json["offload"] = offload_json(store->stats());
  if (run.budget)
    json["budget"] = {{"traced_steps", run.budget->traced_steps},
                      {"planned_steps", run.budget->planned_steps},
                      {"unrecorded_steps", run.budget->unrecorded_steps},
                      {"mismatched_steps", run.budget->mismatched_steps},
                      {"replans", run.budget->replans},
                      {"planning_ms", run.budget->planning_ms}};
  json["data"] = run.args.data;
  json["strategy"] = run.args.strategy;
  json["optimizer"] = run.args.optimizer.empty() ? "adamw" : run.args.optimizer;
  json["ranks"] = run.ranks;
  json["accumulate"] = run.args.accumulate;
  json["machine"] = machine_json();
  json["first_step"] = run.first_step;
  json["steps"] = run.steps_done();
  json["memory_limit_bytes"] = run.limit_of(Budget::Kind::kBytes);
  json["process_limit_bytes"] = run.limit_of(Budget::Kind::kProcess);
  const auto memory = memory_stats();
  json["peak_bytes"] = memory.peak;
  json["resident_peak_bytes"] = memory.resident_peak;
  json["resident_base_bytes"] = run.resident_base;
  json["heap"] = tensor_heap();
  json["step_ms_median"] = median(run.step_ms);
  if (run.scaler.is_enabled()) json["loss_scale"] = run.scaler.get_scale();
  json["unit"] = run.model->unit();
  json["units_per_second"] = run.step_ms.empty() ? Json() : Json(run.units_per_second());
  json["losses"] = losses;
  json["loss_bits"] = bits;
  return json;
}

/// What to do about a limit that was too low. Under a budget, too, all that is evictable was evicted by then.
std::string advice(const Run& run) {
  const auto& strategy = run.args.strategy;
  const std::string option = run.args.available > 0.0                                   ? "--available"
                             : run.limit && run.limit->kind() == Budget::Kind::kProcess ? "--process-limit"
                                                                                        : "--memory-limit";
  if (strategy == "none") return fmt::format("raise {}, lower --batch, or use --strategy per_block or auto", option);
  const auto budget = is_budget(strategy) ? budget_of(strategy) : plan::Budget::of_fraction(1.0);
  const bool is_of_budget = budget.fraction < 0.0 && (!run.limit || budget.bytes <= run.limit->bytes());
  return is_of_budget ? "raise the bytes of the budget, or lower --batch"
                      : fmt::format("raise {}, or lower --batch", option);
}

int stopped(const Run& run, const std::string& cause) {
  const std::string message = fmt::format("out of memory: {} (step {}, strategy {}); {}", cause, run.steps_done() + 1,
                                          run.args.strategy, advice(run));
  if (run.rank == 0) write_json(run.args.json, report(run, message));
  fmt::print(stderr, "refrain: {}\n", message);
  return kOutOfMemory;
}

}  // namespace

int run_train(const TrainArgs& args) {
  const auto place = ProcessGroupOptions::from_environment();
  if (args.ranks > 1 && place.world_size() == 1) {
    check_options(args);
    auto command = args.command_line;
    command[0] = "/proc/self/exe";
    return launch({.ranks = args.ranks, .command = command, .echo = Echo::kRankZero});
  }
  if (args.ranks > 0 && args.ranks != place.world_size()) {
    throw InvalidArgument(fmt::format("--ranks {}: found a process that a launcher started as one of {}; leave it out",
                                      args.ranks, place.world_size()));
  }
  Run run = prepare(args, place);
  try {
    train(run);
  } catch (const c10::Error& error) {
    if (!is_out_of_memory(error)) throw;
    return stopped(run, allocation_failure_cause(error));
  } catch (const std::bad_alloc&) {
    return stopped(run, "the system refused an allocation");
  }
  save(run);
  if (run.rank != 0) return kOk;
  if (args.json != "-") {
    const auto memory = memory_stats();
    const auto of_limit = [&](Budget::Kind kind) {
      return run.limit && run.limit->kind() == kind ? " of " + format_bytes(run.limit->bytes()) : std::string();
    };
    fmt::print(
        "{} steps of {}, strategy {}: loss {:.4f} -> {:.4f}, {:.1f} ms/step, {:.0f} {}/s, peak {}{}, resident {}{}\n",
        run.losses.size(), title(*run.model), args.strategy, run.losses.front(), run.losses.back(), median(run.step_ms),
        run.units_per_second(), run.model->unit(), format_bytes(memory.peak), of_limit(Budget::Kind::kBytes),
        format_bytes(memory.resident_peak), of_limit(Budget::Kind::kProcess));
  }
  write_json(args.json, report(run, ""));
  return kOk;
}

}  // namespace refrain::cli
