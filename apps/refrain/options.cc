#include "apps/refrain/options.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/suggest.h"

namespace refrain::cli {
namespace {

constexpr const char* kJsonHelp = "write the result as JSON to this file; '-' for standard output";
constexpr const char* kHtmlHelp = "draw the result as one HTML page to this file; '-' for standard output";
constexpr const char* kBudgetHelp = "; budget:0.5 (fraction) or budget:400MiB (bytes) plans the whole step for a peak";
constexpr int64_t kManySteps = 1'000'000'000;
constexpr int kMostRanks = 1024;

/// CLI::Range lets NaN pass.
const CLI::Validator kLearningRate(
    [](std::string& text) {
      double value = 0.0;
      const bool is_number = CLI::detail::lexical_cast(text, value);
      return is_number && value >= 1e-12 && value <= 1e3 ? ""
                                                         : fmt::format("Value {} not in range 1e-12 to 1000", text);
    },
    "FLOAT in [1e-12 - 1000]");

/// Conversion to an unsigned number wraps negative ones.
const CLI::Validator kSeed(
    [](std::string& text) { return text.starts_with("-") ? "Value " + text + " is negative" : ""; }, "");

const CLI::Range kSize(int64_t{1}, int64_t{1} << 30);

void add_model_options(CLI::App& command, ModelArgs& model, const char* model_help) {
  const auto& size = kSize;
  command.add_option("MODEL", model.name, model_help)->required();
  command
      .add_option("--batch", model.batch,
                  "examples in a batch; default of this and all sizes below: the model's preset")
      ->check(size);
  command.add_option("--seq", model.seq, "tokens per example (gpt, blocks, lstm)")->check(size);
  command.add_option("--image-size", model.image_size, "height and width in pixels (resnet, unet)")->check(size);
  command.add_option("--depth", model.depth, "layers or blocks (mlp, gpt, blocks, lstm)")->check(size);
  command.add_option("--width", model.width, "hidden size or channels (mlp, gpt, blocks, lstm, unet)")->check(size);
  command.add_option("--vocab", model.vocab, "vocabulary size (gpt, lstm); 256 reads bytes")->check(size);
  command.add_option("--classes", model.classes, "number of classes (resnet)")->check(size);
  command.add_option("--dropout", model.dropout, "dropout probability (gpt)")->check(CLI::Range(0.0, 1.0));
  command.add_option("--seed", model.seed, "seed for weights, data and dropout")->check(kSeed)->capture_default_str();
  command.add_option("--threads", model.threads, "compute threads; default: LibTorch's choice")
      ->check(CLI::Range(1, 1024));
  command.add_option("--offload-dir", model.offload_dir,
                     "folder for the file of strategy offload:disk; default: the system's temporary folder");
  command.add_option("--amp", model.amp, "autocast dtype in forward: bf16, f16 (train scales the loss) or none")
      ->check(CLI::IsMember({"bf16", "f16", "none"}))
      ->capture_default_str();
}

void add_optimizer_option(CLI::App& command, std::string& optimizer) {
  command.add_option("--optimizer", optimizer, "optimizer: adam, adamw or sgd (momentum 0.9)")
      ->check(CLI::IsMember({"adam", "adamw", "sgd"}))
      ->capture_default_str();
}

/// @param more  end of the help text.
void add_strategies_option(CLI::App& command, std::vector<std::string>& strategies, const std::string& more = "") {
  const std::string help =
      "strategies to run, comma-separated; default: all of the model; the baseline 'none' always runs";
  command.add_option("--strategies", strategies, help + more)->delimiter(',');
}

/// @param of  what is timed, for the help: "each strategy".
void add_timing_options(CLI::App& command, int& iters, int& warmup, const std::string& of) {
  command.add_option("--iters", iters, "timed steps of " + of)->check(CLI::Range(1, 100000))->capture_default_str();
  command.add_option("--warmup", warmup, "untimed steps of " + of)->check(CLI::Range(0, 1000))->capture_default_str();
}

void add_document_options(CLI::App& command, std::string& json, std::string& html) {
  command.add_option("--json", json, kJsonHelp);
  command.add_option("--html", html, kHtmlHelp);
}

void add_planner_options(CLI::App& command, PlanArgs& args) {
  command.add_option("FILE", args.file, "JSON file with a traced step, as 'profile' writes")->required();
  command.add_option("--batch", args.batch, "batch size to plan for (two-batch profiles only)")->check(kSize);
  command.add_option("--solver", args.solver,
                     "solver: auto (default; the best of all) or one by name; an unknown name lists them");
  command
      .add_option("--time-limit", args.time_limit,
                  "seconds to search for each budget, and as many again for --bound; default: 3, more for large steps")
      ->check(CLI::Range(0.001, 1e6));
  command.add_option("--seed", args.seed, "seed for the local search")->check(kSeed)->capture_default_str();
  command.add_flag("--bound", args.bound, "prove a lower bound on the added time");
  command
      .add_option("--saved-ops", args.saved_ops,
                  "operators whose outputs solver selective saves: parts of their names, comma-separated")
      ->delimiter(',');
  command.add_option("--starts", args.starts, "plan files to start the search from, comma-separated")->delimiter(',');
  command.add_option("--json", args.json, kJsonHelp);
}

void add_limit_option(CLI::App& command, std::string& limit) {
  command.add_option("--memory-limit", limit, "limit on the bytes of all tensors, e.g. 300MiB")->required();
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const auto* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

}  // namespace

Commands::Commands(CLI::App& app, std::vector<std::string> command_line) {
  env_ = app.add_subcommand("env", "Show machine and versions, and test that this LibTorch works with Refrain");
  env_->add_option("--json", env_args_.json, kJsonHelp);

  verify_ = app.add_subcommand("verify",
                               "Check that strategies are bit-equal to the baseline: loss, gradients, buffers, "
                               "weights, generator");
  add_model_options(*verify_, verify_args_.model, "model to check, or 'all'");
  verify_->add_option("--strategy", verify_args_.strategy, std::string("strategy to check, or 'all'") + kBudgetHelp)
      ->capture_default_str();
  verify_->add_option("--steps", verify_args_.steps, "training steps to compare")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  verify_->add_option("--json", verify_args_.json, kJsonHelp);

  bench_ =
      app.add_subcommand("bench", "Measure memory and time of strategies against the baseline, in interleaved steps");
  add_model_options(*bench_, bench_args_.model, "model to measure");
  add_strategies_option(*bench_, bench_args_.strategies, kBudgetHelp);
  bench_
      ->add_option("--depths", bench_args_.depths,
                   "depths to benchmark, in layers or blocks, comma-separated (mlp, gpt, blocks, lstm)")
      ->delimiter(',')
      ->check(kSize);
  auto* const limits =
      bench_->add_option("--limits", bench_args_.limits,
                         "memory caps to benchmark, in % of the baseline peak, comma-separated, e.g. 100%,60%,40%");
  limits->delimiter(',');
  bench_
      ->add_option("--heuristics", bench_args_.heuristics,
                   "eviction heuristics for --limits, comma-separated: h_dtr (default), lru, largest, msps")
      ->delimiter(',')
      ->needs(limits);
  bench_
      ->add_option("--max-overhead", bench_args_.max_overhead,
                   "fail a cap whose recompute time exceeds this multiple of operator time")
      ->check(CLI::Range(0.01, 1e6))
      ->needs(limits)
      ->capture_default_str();
  add_timing_options(*bench_, bench_args_.iters, bench_args_.warmup, "each strategy");
  add_document_options(*bench_, bench_args_.json, bench_args_.html);

  explain_ = app.add_subcommand("explain",
                                "Show which tensors a forward saves for backward, and why; or what a plan evicts and "
                                "recomputes, and why");
  add_model_options(*explain_, explain_args_.model, "model to explain, or a JSON file with a plan or a traced step");
  explain_->add_option("--strategy", explain_args_.strategy, "strategy to explain")->capture_default_str();
  explain_->add_flag("--all", explain_args_.all, "print one line for each tensor; default: group similar ones");
  explain_->add_option(
      "--dot", explain_args_.dot,
      "draw operators and values for Graphviz to this file; '-' for standard output (plan or traced step only)");
  explain_->add_option(
      "--trace", explain_args_.trace,
      "write the planned step for ui.perfetto.dev to this file; '-' for standard output (plan or traced step only)");
  explain_->add_option("--json", explain_args_.json, kJsonHelp);

  train_ = app.add_subcommand("train", "Train a model, within a memory limit if one is given");
  add_model_options(*train_, train_args_.model, "model to train");
  train_->add_option("--data", train_args_.data, "training data: text:FILE, cifar10:DIR, mnist:DIR or synthetic")
      ->capture_default_str();
  train_
      ->add_option(
          "--strategy", train_args_.strategy,
          std::string("strategy to train with; auto: no regions, evict tensors to stay within the limit") + kBudgetHelp)
      ->capture_default_str();
  train_->add_option("--steps", train_args_.steps, "total steps, including those before --resume")
      ->check(CLI::Range(int64_t{1}, kManySteps));
  train_
      ->add_option("--epochs", train_args_.epochs,
                   "passes over the data, each in a new random order; instead of --steps")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  train_->add_option("--optimizer", train_args_.optimizer, "optimizer: adam, adamw (default) or sgd (momentum 0.9)")
      ->check(CLI::IsMember({"adam", "adamw", "sgd"}));
  train_->add_option("--lr", train_args_.lr, "learning rate; default: 0.001 for adam and adamw, 0.01 for sgd")
      ->check(kLearningRate);
  train_
      ->add_option("--weight-decay", train_args_.weight_decay,
                   "weight decay; default: 0.01 for adamw, 0 for the others")
      ->check(CLI::Range(0.0, 1.0));
  train_->add_option("--schedule", train_args_.schedule, "learning rate schedule: constant, or cosine down to --min-lr")
      ->check(CLI::IsMember({"constant", "cosine"}))
      ->capture_default_str();
  train_->add_option("--warmup", train_args_.warmup, "steps over which the learning rate rises to --lr; default: 0")
      ->check(CLI::Range(int64_t{0}, kManySteps));
  train_->add_option("--min-lr", train_args_.min_lr, "learning rate at the end of the cosine schedule; default: 0")
      ->check(kLearningRate);
  train_
      ->add_option(
          "--ranks", train_args_.ranks,
          "processes to train with on this machine, each with its own batches; default: those of a launcher, else 1")
      ->check(CLI::Range(1, kMostRanks));
  train_
      ->add_option("--accumulate", train_args_.accumulate, "batches per rank and step, whose gradients are accumulated")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  train_
      ->add_option("--clip-norm", train_args_.clip_norm,
                   "clip the joint norm of all gradients to this; default: no clipping")
      ->check(CLI::PositiveNumber);
  auto* memory_limit =
      train_->add_option("--memory-limit", train_args_.memory_limit, "limit on the bytes of all tensors, e.g. 300MiB");
  auto* process_limit =
      train_->add_option("--process-limit", train_args_.process_limit,
                         "limit on the resident bytes of the process, libraries and scratch included, e.g. 450MiB");
  train_
      ->add_option("--available", train_args_.available,
                   "fraction of the memory free in control groups and system that the process may use, e.g. 0.9")
      ->check(CLI::Range(0.01, 1.0))
      ->excludes(process_limit)
      ->excludes(memory_limit);
  process_limit->excludes(memory_limit);
  train_->add_option("--save", train_args_.save,
                     "write weights, optimizer, step and generators to this file at the end");
  train_
      ->add_option("--save-every", train_args_.save_every,
                   "steps between writes of the --save file; default: write at the end only")
      ->check(CLI::Range(int64_t{1}, kManySteps));
  train_->add_option("--resume", train_args_.resume,
                     "resume from a file that --save wrote, bit-equal to an uninterrupted run");
  train_->add_option("--json", train_args_.json, kJsonHelp);

  train_args_.command_line = std::move(command_line);

  launch_ = app.add_subcommand("launch", "Launch N local ranks; sets RANK, WORLD_SIZE, MASTER_* like torchrun");
  launch_->add_option("-n,--ranks", launch_args_.ranks, "number of ranks, one process each")
      ->required()
      ->check(CLI::Range(1, kMostRanks));
  launch_->add_option("--port", launch_args_.port, "port on which rank 0 listens; default: a free one")
      ->check(CLI::Range(1, 65535));
  launch_->add_option("PROGRAM", launch_args_.command, "program and its arguments, after --")->required();

  compare_ = app.add_subcommand("compare", "Compare reports of 'train --json': memory, time, and losses bit by bit");
  compare_->add_option("FILES", compare_args_.files, "two or more reports; the first is the reference")
      ->required()
      ->expected(2, 1000);
  compare_->add_option("--json", compare_args_.json, kJsonHelp);

  breakdown_ = app.add_subcommand("breakdown", "Show where the memory of a training step goes, by batch size");
  add_model_options(*breakdown_, breakdown_args_.model, "model to measure");
  breakdown_->add_option("--strategy", breakdown_args_.strategy, "strategy to measure")->capture_default_str();
  add_optimizer_option(*breakdown_, breakdown_args_.optimizer);
  breakdown_
      ->add_option("--batches", breakdown_args_.batches,
                   "batch sizes, comma-separated; default: --batch, 2 and 4 times that")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  add_document_options(*breakdown_, breakdown_args_.json, breakdown_args_.html);

  timeline_ = app.add_subcommand("timeline", "Show memory over a training step, and the tensors alive at its peak");
  add_model_options(*timeline_, timeline_args_.model, "model to record");
  timeline_
      ->add_option("--strategy", timeline_args_.strategy,
                   "strategy to record; auto evicts under --memory-limit, budget:0.5 runs by a plan")
      ->capture_default_str();
  timeline_->add_option("--memory-limit", timeline_args_.memory_limit,
                        "limit of strategy auto in bytes, all tensors; e.g. 120MiB");
  add_optimizer_option(*timeline_, timeline_args_.optimizer);
  timeline_
      ->add_option("--iters", timeline_args_.iters,
                   "pairs of steps, with and without recording, to measure its overhead")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  timeline_->add_option("--warmup", timeline_args_.warmup, "untimed steps before")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  timeline_->add_option("--trace", timeline_args_.trace,
                        "write every event for ui.perfetto.dev to this file; '-' for standard output");
  add_document_options(*timeline_, timeline_args_.json, timeline_args_.html);

  segments_ = app.add_subcommand("segments",
                                 "Measure memory and time by the number of segments that a row of layers is cut into");
  add_model_options(*segments_, segments_args_.model, "model to cut (mlp, gpt, blocks)");
  segments_
      ->add_option("--segments", segments_args_.segments,
                   "numbers of segments, comma-separated; default: powers of two and about sqrt(n); 1 and n always run")
      ->delimiter(',')
      ->check(kSize);
  add_timing_options(*segments_, segments_args_.iters, segments_args_.warmup, "each number of segments");
  add_document_options(*segments_, segments_args_.json, segments_args_.html);

  max_batch_ = app.add_subcommand("max-batch", "Find the largest batch that trains within a memory limit");
  add_model_options(*max_batch_, max_batch_args_.model, "model to train");
  add_limit_option(*max_batch_, max_batch_args_.memory_limit);
  add_strategies_option(*max_batch_, max_batch_args_.strategies);
  add_optimizer_option(*max_batch_, max_batch_args_.optimizer);
  add_document_options(*max_batch_, max_batch_args_.json, max_batch_args_.html);

  least_limit_ = app.add_subcommand("least-limit",
                                    "Find the lowest memory limit under which a step runs, and measure the cost "
                                    "of limits above it");
  add_model_options(*least_limit_, least_limit_args_.model, "model to measure");
  least_limit_
      ->add_option("--multiples", least_limit_args_.multiples,
                   "limits to measure, as multiples of the lowest, comma-separated; default: 1,1.1,1.25,1.5")
      ->delimiter(',')
      ->check(CLI::Range(1.0, 1000.0));
  least_limit_
      ->add_option("--tolerance", least_limit_args_.tolerance,
                   "precision of the search, as a fraction of what a step needs without a limit")
      ->check(CLI::Range(0.0001, 0.5))
      ->capture_default_str();
  least_limit_
      ->add_option("--max-overhead", least_limit_args_.max_overhead,
                   "fail a limit whose recompute time exceeds this multiple of operator time")
      ->check(CLI::Range(0.01, 1e6))
      ->capture_default_str();
  least_limit_->add_option("--iters", least_limit_args_.iters, "timed steps at each limit")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  least_limit_->add_option("--json", least_limit_args_.json, kJsonHelp);

  advise_ = app.add_subcommand("advise", "Recommend a strategy for a memory limit, from measurements");
  add_model_options(*advise_, advise_args_.model, "model to train");
  add_limit_option(*advise_, advise_args_.memory_limit);
  add_strategies_option(*advise_, advise_args_.strategies);
  add_optimizer_option(*advise_, advise_args_.optimizer);
  advise_->add_option("--iters", advise_args_.iters, "timed steps of each strategy")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  add_document_options(*advise_, advise_args_.json, advise_args_.html);

  profile_ = app.add_subcommand(
      "profile", "Trace a training step for 'plan' and 'pareto': operators, times, live ranges, exact bytes");
  add_model_options(*profile_, profile_args_.model, "model to trace");
  profile_->add_option("-o,--output", profile_args_.output, "write the traced step to this JSON file")->required();
  profile_
      ->add_option("--batches", profile_args_.batches,
                   "two batch sizes to trace for 'plan --batch', and a third to check the scaling at, comma-separated; "
                   "default of the third: 2 * larger - smaller")
      ->delimiter(',')
      ->check(kSize);
  profile_
      ->add_option("--iters", profile_args_.iters,
                   "runs of the step; the last is the trace, with the shortest time of each operator")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  profile_->add_option("--json", profile_args_.json, kJsonHelp);

  plan_ = app.add_subcommand("plan", "Plan what to evict and recompute so that a traced step fits a memory budget");
  add_planner_options(*plan_, plan_args_);
  plan_
      ->add_option("--budget", plan_args_.budget,
                   "peak to plan for: bytes, e.g. 400MiB, or a fraction from 0 (lowest peak) to 1 (baseline peak)")
      ->required();
  plan_->add_option("-o,--output", plan_args_.output, "write the plan to this file; '-' for standard output");

  pareto_ = app.add_subcommand("pareto", "Plan a traced step for budgets from the lowest peak to that of the baseline");
  add_planner_options(*pareto_, pareto_args_);
  pareto_->add_option("--beside", pareto_args_.beside, "further solvers for the document and the page, comma-separated")
      ->delimiter(',');
  pareto_->add_option("--html", pareto_args_.html, kHtmlHelp);
  pareto_->add_option("--points", pareto_args_.points, "number of budgets")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();

  report_ = app.add_subcommand("report",
                               "Draw documents that measuring commands wrote with --json, together on one HTML page");
  report_->add_option("FILES", report_args_.files, "JSON documents, drawn in this order")
      ->required()
      ->expected(1, 1000);
  report_->add_option("--html", report_args_.html, "HTML page to write; '-' for standard output")->required();

  for (auto* command : app.get_subcommands({})) command->footer(app.get_footer());
}

int Commands::dispatch() const {
  if (*env_) return run_env(env_args_);
  if (*verify_) return run_verify(verify_args_);
  if (*bench_) return run_bench(bench_args_);
  if (*explain_) return run_explain(explain_args_);
  if (*train_) return run_train(train_args_);
  if (*launch_) return run_launch(launch_args_);
  if (*compare_) return run_compare(compare_args_);
  if (*breakdown_) return run_breakdown(breakdown_args_);
  if (*timeline_) return run_timeline(timeline_args_);
  if (*segments_) return run_segments(segments_args_);
  if (*max_batch_) return run_max_batch(max_batch_args_);
  if (*least_limit_) return run_least_limit(least_limit_args_);
  if (*advise_) return run_advise(advise_args_);
  if (*profile_) return run_profile(profile_args_);
  if (*plan_) return run_plan(plan_args_);
  if (*pareto_) return run_pareto(pareto_args_);
  return run_report(report_args_);
}

std::string explain(const CLI::App& app, const CLI::ParseError& error) {
  const auto chosen = app.get_subcommands();
  const CLI::App& command = chosen.empty() ? app : *chosen.front();
  const std::string name = chosen.empty() ? "refrain" : "refrain " + command.get_name();
  const auto extras = app.remaining(true);
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError) && !extras.empty()) {
    const auto option = std::find_if(extras.begin(), extras.end(), [](const auto& e) { return e.starts_with("-"); });
    const std::string& extra = option == extras.end() ? extras.front() : *option;
    const std::string found = extra.substr(0, extra.find('='));
    const auto near = found.starts_with("-") ? nearest(found, option_names(command)) : std::vector<std::string>{};
    return fmt::format("unknown {} '{}' for '{}'{}; see '{} --help'", found.starts_with("-") ? "option" : "argument",
                       found, name, near.empty() ? "" : ": did you mean " + near.front() + "?", name);
  }
  return fmt::format("{}; see '{} --help'", error.what(), name);
}

}  // namespace refrain::cli
