#pragma once

#include <CLI/CLI.hpp>

#include "apps/refrain/commands.h"

namespace refrain::cli {

/// Adds all commands to `app`. The chosen one is run by `dispatch` after parsing.
class Commands {
 public:
  /// @param command_line  of this process, for commands that start it again.
  Commands(CLI::App& app, std::vector<std::string> command_line);
  int dispatch() const;

 private:
  CLI::App *env_, *verify_, *bench_, *explain_, *train_, *launch_, *compare_, *breakdown_, *timeline_, *segments_,
      *max_batch_, *least_limit_, *advise_, *profile_, *plan_, *pareto_, *report_;
  EnvArgs env_args_;
  VerifyArgs verify_args_;
  BenchArgs bench_args_;
  ExplainArgs explain_args_;
  TrainArgs train_args_;
  LaunchArgs launch_args_;
  CompareArgs compare_args_;
  BreakdownArgs breakdown_args_;
  TimelineArgs timeline_args_;
  SegmentsArgs segments_args_;
  MaxBatchArgs max_batch_args_;
  LeastLimitArgs least_limit_args_;
  AdviseArgs advise_args_;
  ProfileArgs profile_args_;
  PlanArgs plan_args_, pareto_args_;
  ReportArgs report_args_;
};

/// `message: what to do`, with the command's or option's nearest names if `error` is about an unknown one.
std::string explain(const CLI::App& app, const CLI::ParseError& error);

}  // namespace refrain::cli
