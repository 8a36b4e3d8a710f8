#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// The commands of the `refrain` tool. Each `run_*` prints its result and returns an `ExitCode`; bad input is an
/// exception that `main` turns into one line. No torch header here, so that parsing compiles fast.
namespace refrain::cli {

enum ExitCode : int {
  kOk = 0,
  kDiffers = 1,      ///< verify, compare: not bit-equal
  kBadInput = 2,     ///< nothing was run, nothing was written
  kOutOfMemory = 3,  ///< the memory limit, or the machine's memory, was reached
  kInternal = 4,     ///< anything else: a defect here or in LibTorch
  kLostRank = 5,     ///< another rank is missing, exited or timed out
};

/// A model and how to build it; 0 (dropout: negative) means the preset's own. Fields as in `models::ModelOptions`.
struct ModelArgs {
  std::string name;
  int64_t batch = 0, seq = 0, image_size = 0, depth = 0, width = 0, vocab = 0, classes = 0;
  double dropout = -1.0;
  uint64_t seed = 0;
  int threads = 0;           ///< 0: LibTorch's own choice
  std::string offload_dir;   ///< of the strategy offload:disk; "": the system's temporary folder
  std::string amp = "none";  ///< bf16, f16 or none: dtype of autocast in forward
};

struct EnvArgs {
  std::string json;  ///< file, "-" for stdout, empty for none; the same in all commands
};

struct VerifyArgs {
  ModelArgs model;
  std::string strategy = "all";
  int steps = 2;
  std::string json;
};

struct BenchArgs {
  ModelArgs model;
  std::vector<std::string> strategies;  ///< empty: all of the model
  std::vector<int64_t> depths;          ///< empty: the model's
  std::vector<std::string> limits;      ///< of caps, in % of the baseline peak, "60%"; empty: strategies instead
  std::vector<std::string> heuristics;  ///< eviction heuristics; empty: the library's choice
  double max_overhead = 10.0;           ///< of caps: recompute time over operator time, at most
  int iters = 7;
  int warmup = 2;
  std::string json;
  std::string html;  ///< page, "-" for stdout, empty for none
};

struct ExplainArgs {
  ModelArgs model;  ///< its name may be a file with a plan or a traced step
  std::string strategy = "per_block";
  bool all = false;  ///< a line for each tensor
  std::string json;
  std::string dot, trace;  ///< of a plan: drawings for Graphviz and Perfetto; "-" for stdout, empty for none
};

struct TrainArgs {
  ModelArgs model;
  std::string data = "synthetic";
  std::string strategy = "none";
  int64_t steps = 0;                  ///< in all, those before `resume` included; 0: as `epochs` says
  int64_t epochs = 0;                 ///< passes over the data, each in an order of its own; 0: random examples
  std::string optimizer;              ///< adam, adamw (default) or sgd
  double lr = 0.0;                    ///< 0: the optimizer's default, or what `resume` holds
  double weight_decay = -1.0;         ///< negative: the same
  int ranks = 0;                      ///< processes to train on; 0: those that a launcher started, else one
  int64_t accumulate = 1;             ///< batches of each rank in a step
  double clip_norm = 0.0;             ///< most of the gradients' joint norm; 0: any
  std::string schedule = "constant";  ///< or cosine
  int64_t warmup = 0;                 ///< steps in which the learning rate rises
  double min_lr = 0.0;                ///< where cosine ends
  std::string memory_limit;
  std::string process_limit;  ///< resident bytes
  double available = 0.0;     ///< a process limit: part of what is free; 0: none
  std::string save, resume;
  int64_t save_every = 0;  ///< steps between saves; 0: at the end only
  std::string json;
  std::vector<std::string> command_line;  ///< to start ranks with
};

struct LaunchArgs {
  int ranks = 0;
  int port = 0;                      ///< 0: one that is free
  std::vector<std::string> command;  ///< program and arguments
};

struct CompareArgs {
  std::vector<std::string> files;  ///< reports of `train --json`; the first is the reference
  std::string json;
};

struct BreakdownArgs {
  ModelArgs model;
  std::string strategy = "none";
  std::string optimizer = "adam";  ///< adam, adamw or sgd
  std::vector<int64_t> batches;    ///< empty: the model's, twice and four times that
  std::string json, html;
};

struct TimelineArgs {
  ModelArgs model;
  std::string strategy = "none";
  std::string optimizer = "adam";
  int iters = 5;  ///< pairs of steps, with the timeline and without
  int warmup = 2;
  std::string memory_limit;  ///< of strategy "auto"
  std::string trace;         ///< for Perfetto; "-" for stdout, empty for none
  std::string json, html;
};

struct SegmentsArgs {
  ModelArgs model;
  std::vector<int64_t> segments;  ///< empty: a choice with the square root in it
  int iters = 5;
  int warmup = 1;
  std::string json, html;
};

struct MaxBatchArgs {
  ModelArgs model;
  std::string memory_limit;
  std::string optimizer = "adamw";
  std::vector<std::string> strategies;  ///< empty: all of the model
  std::string json, html;
};

struct AdviseArgs {
  ModelArgs model;
  std::string memory_limit;
  std::string optimizer = "adamw";
  std::vector<std::string> strategies;  ///< empty: all of the model
  int iters = 5;
  std::string json, html;
};

struct ProfileArgs {
  ModelArgs model;
  std::vector<int64_t> batches;  ///< two to trace and one to check by; empty: one trace
  int iters = 3;                 ///< runs of the step; times are the least of all
  std::string output;            ///< the traced step
  std::string json;
};

/// Of plan and pareto.
struct PlanArgs {
  std::string file;    ///< a traced step, or one with two batches
  int64_t batch = 0;   ///< examples to plan for, of a file with two batches
  std::string budget;  ///< bytes, or from 0 to 1
  std::string solver = "auto";
  double time_limit = 0.0;  ///< seconds; 0: the library's choice
  uint64_t seed = 0;
  bool bound = false;
  int points = 9;
  std::vector<std::string> saved_ops, starts;
  std::vector<std::string> beside;  ///< solvers to draw beside the first
  std::string output;               ///< the plan, "-" for stdout, empty for none
  std::string json;
  std::string html;  ///< of pareto: page, "-" for stdout, empty for none
};

struct LeastLimitArgs {
  ModelArgs model;
  std::vector<double> multiples;  ///< of the lowest limit; empty: the library's choice
  double tolerance = 0.01;        ///< of the search, as a fraction of what a step needs
  double max_overhead = 10.0;     ///< as of `BenchArgs`
  int iters = 3;
  std::string json;
};

struct ReportArgs {
  std::vector<std::string> files;  ///< what measuring commands wrote with --json, drawn in this order
  std::string html;
};

int run_env(const EnvArgs& args);
int run_verify(const VerifyArgs& args);
int run_bench(const BenchArgs& args);
int run_explain(const ExplainArgs& args);
int run_train(const TrainArgs& args);
int run_launch(const LaunchArgs& args);
int run_compare(const CompareArgs& args);
int run_breakdown(const BreakdownArgs& args);
int run_timeline(const TimelineArgs& args);
int run_depths(const BenchArgs& args);  ///< bench with `depths`
int run_limits(const BenchArgs& args);  ///< bench with `limits`
int run_segments(const SegmentsArgs& args);
int run_max_batch(const MaxBatchArgs& args);
int run_advise(const AdviseArgs& args);
int run_profile(const ProfileArgs& args);
int run_plan(const PlanArgs& args);
int run_pareto(const PlanArgs& args);
int run_least_limit(const LeastLimitArgs& args);
int run_report(const ReportArgs& args);

}  // namespace refrain::cli
