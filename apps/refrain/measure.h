#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/refrain/budget_strategy.h"
#include "apps/refrain/json_file.h"
#include "models/zoo.h"
#include "refrain/bytes.h"
#include "refrain/offload.h"

namespace refrain::cli {

/// What was seen of forward and backward under one strategy. Bytes are over the level before the step, outputs
/// included.
struct Measurement {
  std::string strategy;
  bool is_following = false;  ///< of a plan that evicts nothing, with everything recorded all the same
  Bytes after_forward = 0, peak = 0;
  Bytes resident_peak =
      0;  ///< of the process in a step of its own, over what was resident before it with all that is free given back
  std::vector<double> step_ms = {}, added_ms = {};
  int64_t replayed_ops = 0;
  double replayed_kernel_ms = 0.0;
  std::optional<OffloadStats> offload = {};   ///< of one step, if the strategy offloads
  std::optional<PlannedBudget> planned = {};  ///< of a budget
  double following_ms = 0.0;                  ///< of a budget: what a plan that evicts nothing adds, in the same turns

  /// What the step should add: following the plan, and recomputing operators as traced.
  double planned_ms() const { return following_ms + planned->plan.added_ms(); }
  bool is_bit_equal = false;
};

/// How gradients of parameters count.
enum class Gradients {
  kMade,   ///< none before a step, so that they are part of its bytes
  kThere,  ///< added to those of earlier steps, so that bytes are activations and what backward needs beside them
};

/// Whether budgets are strategies.
enum class Budgets { kAllowed, kUnknown };

/// "none", then each of `asked`, once; all of the model's if empty. @throws InvalidArgument on an unknown one.
std::vector<Measurement> plan_strategies(models::TrainableModel& model, const std::vector<std::string>& asked,
                                         Budgets budgets = Budgets::kUnknown);

/// Sets `is_bit_equal` by one step of each.
void verify(models::TrainableModel& model, const models::Batch& batch, std::vector<Measurement>& all);

/// One timed step of each strategy in turn, as often as asked; who goes first moves on by one each time. So a machine
/// that slows down slows all of them, and added time is the median of differences to the first strategy's step of the
/// same turn.
/// @param iters  >= 1.
void measure(models::TrainableModel& model, const models::Batch& batch, int iters, int warmup,
             std::vector<Measurement>& all, Gradients gradients = Gradients::kMade);

/// An element of `strategies` in docs/design/report.md.
Json strategy_json(const Measurement& seen);

/// Member `offload` of such an element, and of a training report.
Json offload_json(const OffloadStats& stats);

/// By how much `bytes` is less than `plain`, the baseline's, in percent: "64 %".
std::string saved_percent(Bytes bytes, Bytes plain);
/// Median and half the distance of the quartiles: "12.3 ± 0.2".
std::string median_and_spread(const std::vector<double>& values);

}  // namespace refrain::cli
