#include "apps/refrain/options.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/suggest.h"

namespace refrain::cli {
namespace {

constexpr const char* kJsonHelp = "write the result as JSON to this file; '-' for standard output";
constexpr const char* kHtmlHelp = "draw the result as one HTML page to this file; '-' for standard output";
constexpr const char* kBudgetHelp = "; budget:0.5 or budget:400MiB plans the whole step for a peak";
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
  command.add_option("--batch", model.batch, "examples in a step")->check(size);
  command.add_option("--seq", model.seq, "tokens in an example (gpt, blocks, lstm)")->check(size);
  command.add_option("--image-size", model.image_size, "pixels a side (resnet, unet)")->check(size);
  command.add_option("--depth", model.depth, "layers or blocks (mlp, gpt, blocks, lstm)")->check(size);
  command.add_option("--width", model.width, "hidden size or channels (mlp, gpt, blocks, lstm, unet)")->check(size);
  command.add_option("--vocab", model.vocab, "different tokens (gpt, lstm); 256 reads bytes")->check(size);
  command.add_option("--classes", model.classes, "different labels (resnet)")->check(size);
  command.add_option("--dropout", model.dropout, "probability (gpt)")->check(CLI::Range(0.0, 1.0));
  command.add_option("--seed", model.seed, "of weights, data and dropout")->check(kSeed)->capture_default_str();
  command.add_option("--threads", model.threads, "compute threads; default: LibTorch's choice")
      ->check(CLI::Range(1, 1024));
  command.add_option("--offload-dir", model.offload_dir,
                     "folder for the file of strategy offload:disk; default: the system's for temporary files");
  command.add_option("--amp", model.amp, "autocast in forward: bf16, f16 (train scales the loss) or none")
      ->check(CLI::IsMember({"bf16", "f16", "none"}))
      ->capture_default_str();
}

void add_optimizer_option(CLI::App& command, std::string& optimizer) {
  command.add_option("--optimizer", optimizer, "adam, adamw or sgd (with momentum 0.9)")
      ->check(CLI::IsMember({"adam", "adamw", "sgd"}))
      ->capture_default_str();
}

/// @param more  for the help.
void add_strategies_option(CLI::App& command, std::vector<std::string>& strategies, const std::string& more = "") {
  command.add_option("--strategies", strategies, "comma-separated; default: all of the model; 'none' is always run" + more)
      ->delimiter(',');
}

/// @param of  what an iteration is one of, for the help.
void add_timing_options(CLI::App& command, int& iters, int& warmup, const std::string& of) {
  command.add_option("--iters", iters, "timed steps of " + of)->check(CLI::Range(1, 100000))->capture_default_str();
  command.add_option("--warmup", warmup, "untimed steps of " + of)->check(CLI::Range(0, 1000))->capture_default_str();
}

void add_document_options(CLI::App& command, std::string& json, std::string& html) {
  command.add_option("--json", json, kJsonHelp);
  command.add_option("--html", html, kHtmlHelp);
}

void add_planner_options(CLI::App& command, PlanArgs& args) {
  command.add_option("FILE", args.file, "JSON file with a traced step")->required();
  command.add_option("--batch", args.batch, "of a file by profile --batches: examples in the step to plan for")->check(kSize);
  command.add_option("--solver", args.solver, "auto (default: the best of all) or one of them; a wrong name lists them");
  command.add_option("--time-limit", args.time_limit, "seconds for each budget, as much again for --bound; default: 3, more for large steps")
      ->check(CLI::Range(0.001, 1e6));
  command.add_option("--seed", args.seed, "of the local search")->check(kSeed)->capture_default_str();
  command.add_flag("--bound", args.bound, "prove how much time any plan adds at least");
  command.add_option("--saved-ops", args.saved_ops, "of solver selective: parts of names of operators whose outputs are saved, comma-separated")
      ->delimiter(',');
  command.add_option("--starts", args.starts, "files with plans to start from, comma-separated")->delimiter(',');
  command.add_option("--json", args.json, kJsonHelp);
}

void add_limit_option(CLI::App& command, std::string& limit) {
  command.add_option("--memory-limit", limit, "most bytes of tensors at any time, as '300MiB'")->required();
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
  env_ = app.add_subcommand("env", "Show the machine, LibTorch, and whether this LibTorch works as the tape needs");
  env_->add_option("--json", env_args_.json, kJsonHelp);

  verify_ = app.add_subcommand("verify",
                               "Check that a strategy changes no bit: loss, gradients, buffers, weights, generator");
  add_model_options(*verify_, verify_args_.model, "model to check, or 'all'");
  verify_->add_option("--strategy", verify_args_.strategy, std::string("strategy to check, or 'all'") + kBudgetHelp)->capture_default_str();
  verify_->add_option("--steps", verify_args_.steps, "training steps to compare")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  verify_->add_option("--json", verify_args_.json, kJsonHelp);

  bench_ = app.add_subcommand("bench", "Measure memory and time of strategies, against 'none', interleaved");
  add_model_options(*bench_, bench_args_.model, "model to measure");
  add_strategies_option(*bench_, bench_args_.strategies, kBudgetHelp);
  bench_->add_option("--depths", bench_args_.depths, "comma-separated; a table for each depth (mlp, gpt, blocks, lstm)")
      ->delimiter(',')
      ->check(kSize);
  auto* const limits = bench_->add_option(
      "--limits", bench_args_.limits, "comma-separated; a row for a cap at each part of the plain peak, as '60%'");
  limits->delimiter(',');
  bench_->add_option("--heuristics", bench_args_.heuristics,
                     "of --limits, what leaves first, comma-separated: h_dtr (default), lru, largest, msps")
      ->delimiter(',')
      ->needs(limits);
  bench_->add_option("--max-overhead", bench_args_.max_overhead,
                     "of --limits: refuse one whose steps compute again for more than this times their operators' time")
      ->check(CLI::Range(0.01, 1e6))
      ->needs(limits)
      ->capture_default_str();
  add_timing_options(*bench_, bench_args_.iters, bench_args_.warmup, "each strategy");
  add_document_options(*bench_, bench_args_.json, bench_args_.html);

  explain_ = app.add_subcommand("explain", "Show what a forward keeps for backward, tensor by tensor, and why; or what a plan does, and why");
  add_model_options(*explain_, explain_args_.model, "model to explain, or a JSON file with a plan or a traced step");
  explain_->add_option("--strategy", explain_args_.strategy, "what to checkpoint")->capture_default_str();
  explain_->add_flag("--all", explain_args_.all, "a line for each tensor; default: like ones together");
  explain_->add_option("--dot", explain_args_.dot, "of a file: draw operators and values for Graphviz to this file; '-' for standard output");
  explain_->add_option("--trace", explain_args_.trace, "of a file: write the planned step to this file, for ui.perfetto.dev; '-' for standard output");
  explain_->add_option("--json", explain_args_.json, kJsonHelp);

  train_ = app.add_subcommand("train", "Train a model, under a memory limit if asked");
  add_model_options(*train_, train_args_.model, "model to train");
  train_->add_option("--data", train_args_.data, "text:FILE, cifar10:DIR, mnist:DIR or synthetic")
      ->capture_default_str();
  train_->add_option("--strategy", train_args_.strategy, std::string("what to checkpoint; auto: nothing, but keep to the limit") + kBudgetHelp)
      ->capture_default_str();
  train_->add_option("--steps", train_args_.steps, "steps in all, those before --resume included")
      ->check(CLI::Range(int64_t{1}, kManySteps));
  train_->add_option("--epochs", train_args_.epochs, "passes over the data instead, each in a random order")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  train_->add_option("--optimizer", train_args_.optimizer, "adam, adamw (default) or sgd (with momentum 0.9)")
      ->check(CLI::IsMember({"adam", "adamw", "sgd"}));
  train_->add_option("--lr", train_args_.lr, "learning rate; default: 0.001 for adamw, 0.01 for sgd")
      ->check(kLearningRate);
  train_->add_option("--weight-decay", train_args_.weight_decay, "default: 0.01 for adamw, 0 for the others")
      ->check(CLI::Range(0.0, 1.0));
  train_->add_option("--schedule", train_args_.schedule, "of the learning rate: constant or cosine, down to --min-lr")
      ->check(CLI::IsMember({"constant", "cosine"}))
      ->capture_default_str();
  train_->add_option("--warmup", train_args_.warmup, "first steps, in which the learning rate rises to --lr")
      ->check(CLI::Range(int64_t{0}, kManySteps));
  train_->add_option("--min-lr", train_args_.min_lr, "learning rate at the end of cosine; default: 0")
      ->check(kLearningRate);
  train_->add_option("--ranks", train_args_.ranks, "processes of this machine to train on, each with batches of its own")
      ->check(CLI::Range(1, kMostRanks));
  train_->add_option("--accumulate", train_args_.accumulate, "batches of each rank whose gradients make one step")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  train_->add_option("--clip-norm", train_args_.clip_norm, "scale gradients down to this norm of all of them together")
      ->check(CLI::PositiveNumber);
  auto* memory_limit = train_->add_option("--memory-limit", train_args_.memory_limit, "most bytes of tensors at any time, as '300MiB'");
  auto* process_limit = train_->add_option("--process-limit", train_args_.process_limit,
                                           "most resident bytes of the process at any time, libraries and scratch included, as '450MiB'");
  train_->add_option("--available", train_args_.available,
                     "part of what control groups and system have free that the process may take, as 0.9")
      ->check(CLI::Range(0.01, 1.0))
      ->excludes(process_limit)
      ->excludes(memory_limit);
  process_limit->excludes(memory_limit);
  train_->add_option("--save", train_args_.save,
                     "at the end, write weights, optimizer, step and generators to this file");
  train_->add_option("--save-every", train_args_.save_every, "write it after every so many steps, too")
      ->check(CLI::Range(int64_t{1}, kManySteps));
  train_->add_option("--resume", train_args_.resume, "go on from a file that --save wrote, to the bit");
  train_->add_option("--json", train_args_.json, kJsonHelp);

  train_args_.command_line = std::move(command_line);

  launch_ = app.add_subcommand("launch", "Run a program as several ranks on this machine, told so as torchrun tells it");
  launch_->add_option("-n,--ranks", launch_args_.ranks, "how many processes")
      ->required()
      ->check(CLI::Range(1, kMostRanks));
  launch_->add_option("--port", launch_args_.port, "where rank 0 listens; default: one that is free")
      ->check(CLI::Range(1, 65535));
  launch_->add_option("PROGRAM", launch_args_.command, "program and its arguments, after --")->required();

  compare_ = app.add_subcommand("compare", "Compare reports of 'train --json': memory, time, and losses to the bit");
  compare_->add_option("FILES", compare_args_.files, "two or more reports; the first is the reference")
      ->required()
      ->expected(2, 1000);
  compare_->add_option("--json", compare_args_.json, kJsonHelp);

  breakdown_ = app.add_subcommand("breakdown", "Show where the memory of a training step goes, by batch size");
  add_model_options(*breakdown_, breakdown_args_.model, "model to take apart");
  breakdown_->add_option("--strategy", breakdown_args_.strategy, "what to checkpoint")->capture_default_str();
  add_optimizer_option(*breakdown_, breakdown_args_.optimizer);
  breakdown_->add_option("--batches", breakdown_args_.batches, "comma-separated; default: --batch, twice and 4 times that")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  add_document_options(*breakdown_, breakdown_args_.json, breakdown_args_.html);

  timeline_ = app.add_subcommand("timeline", "Show memory over a training step, and what is alive at its peak");
  add_model_options(*timeline_, timeline_args_.model, "model to watch");
  timeline_->add_option("--strategy", timeline_args_.strategy, "what to checkpoint")->capture_default_str();
  add_optimizer_option(*timeline_, timeline_args_.optimizer);
  timeline_->add_option("--iters", timeline_args_.iters, "pairs of steps, watched and not, to measure what watching costs")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  timeline_->add_option("--warmup", timeline_args_.warmup, "steps before")->check(CLI::Range(0, 1000))->capture_default_str();
  timeline_->add_option("--trace", timeline_args_.trace, "write every event to this file, for ui.perfetto.dev; '-' for standard output");
  add_document_options(*timeline_, timeline_args_.json, timeline_args_.html);

  segments_ = app.add_subcommand("segments", "Measure memory and time over the number of segments of a row of layers");
  add_model_options(*segments_, segments_args_.model, "model to cut (mlp, gpt, blocks)");
  segments_->add_option("--segments", segments_args_.segments,
                        "comma-separated; default: powers of two and about sqrt(n); 1 and n are always run")
      ->delimiter(',')
      ->check(kSize);
  add_timing_options(*segments_, segments_args_.iters, segments_args_.warmup, "each");
  add_document_options(*segments_, segments_args_.json, segments_args_.html);

  max_batch_ = app.add_subcommand("max-batch", "Find the largest batch that trains within a memory limit");
  add_model_options(*max_batch_, max_batch_args_.model, "model to train");
  add_limit_option(*max_batch_, max_batch_args_.memory_limit);
  add_strategies_option(*max_batch_, max_batch_args_.strategies);
  add_optimizer_option(*max_batch_, max_batch_args_.optimizer);
  add_document_options(*max_batch_, max_batch_args_.json, max_batch_args_.html);

  least_limit_ = app.add_subcommand("least-limit", "Find the least memory limit that a step keeps, and measure what limits above it cost");
  add_model_options(*least_limit_, least_limit_args_.model, "model to measure");
  least_limit_->add_option("--multiples", least_limit_args_.multiples,
                           "limits to measure, as multiples of the least one, comma-separated; default: 1,1.1,1.25,1.5")
      ->delimiter(',')
      ->check(CLI::Range(1.0, 1000.0));
  least_limit_->add_option("--tolerance", least_limit_args_.tolerance, "how near to search, as a part of what a step takes without a limit")
      ->check(CLI::Range(0.0001, 0.5))
      ->capture_default_str();
  least_limit_->add_option("--max-overhead", least_limit_args_.max_overhead,
                           "refuse a limit at which a step recomputes for more than this times its operators' time")
      ->check(CLI::Range(0.01, 1e6))
      ->capture_default_str();
  least_limit_->add_option("--iters", least_limit_args_.iters, "timed steps at each limit")->check(CLI::Range(1, 100000))->capture_default_str();
  least_limit_->add_option("--json", least_limit_args_.json, kJsonHelp);

  advise_ = app.add_subcommand("advise", "Measure whether to checkpoint within a memory limit, and how");
  add_model_options(*advise_, advise_args_.model, "model to train");
  add_limit_option(*advise_, advise_args_.memory_limit);
  add_strategies_option(*advise_, advise_args_.strategies);
  add_optimizer_option(*advise_, advise_args_.optimizer);
  advise_->add_option("--iters", advise_args_.iters, "timed steps of each strategy")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  add_document_options(*advise_, advise_args_.json, advise_args_.html);

  profile_ = app.add_subcommand("profile", "Trace a training step for 'plan' and 'pareto': operators, times, lifetimes, exact bytes");
  add_model_options(*profile_, profile_args_.model, "model to run");
  profile_->add_option("-o,--output", profile_args_.output, "write the traced step to this JSON file")->required();
  profile_->add_option("--batches", profile_args_.batches,
                       "comma-separated: trace two, for 'plan --batch', and check what they say of a third one; default of that: as far again")
      ->delimiter(',')
      ->check(kSize);
  profile_->add_option("--iters", profile_args_.iters, "runs of the step; the last is traced, with the least time of each operator")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  profile_->add_option("--json", profile_args_.json, kJsonHelp);

  plan_ = app.add_subcommand("plan", "Plan what to drop and compute again so that a traced step keeps a budget of bytes");
  add_planner_options(*plan_, plan_args_);
  plan_->add_option("--budget", plan_args_.budget, "most bytes at any time, as 400MiB; or 0 to 1, from the least peak to the plain one")
      ->required();
  plan_->add_option("-o,--output", plan_args_.output, "write the plan to this file; '-' for standard output");

  pareto_ = app.add_subcommand("pareto", "Plan a traced step for budgets from the least peak to the plain one");
  add_planner_options(*pareto_, pareto_args_);
  pareto_->add_option("--beside", pareto_args_.beside, "further solvers, comma-separated, for the document and the page")->delimiter(',');
  pareto_->add_option("--html", pareto_args_.html, kHtmlHelp);
  pareto_->add_option("--points", pareto_args_.points, "how many budgets")->check(CLI::Range(2, 1000))->capture_default_str();

  report_ = app.add_subcommand("report", "Draw what measuring commands wrote with --json, together on one HTML page");
  report_->add_option("FILES", report_args_.files, "JSON documents, drawn in this order")->required()->expected(1, 1000);
  report_->add_option("--html", report_args_.html, "the page to write; '-' for standard output")->required();

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
