#include "apps/refrain/trials.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/refrain/steps.h"
#include "refrain/breakdown.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {

Bytes parse_limit(const std::string& text) {
  const Bytes limit = parse_bytes(text), machine = machine_memory();
  if (limit <= machine || machine == 0) return limit;
  throw InvalidArgument(fmt::format("--memory-limit {}: found a machine with {} of memory; expected at most that",
                                    format_bytes(limit), format_bytes(machine)));
}

torch::Tensor train_step(models::TrainableModel& model, torch::optim::Optimizer& optimizer, GradScaler& scaler,
                         const StepInputs& plan) {
  drop_gradients(model.module());  // zero_grad of LibTorch's optimizers refuses views of buckets
  std::unique_ptr<NoSyncGuard> pause;
  if (plan.parallel) pause.reset(new NoSyncGuard(plan.parallel->no_sync()));
  torch::Tensor mean;
  for (int64_t i = 0; i < plan.accumulate; ++i) {
    if (i + 1 == plan.accumulate) pause.reset();
    auto batch = plan.batch(i);
    const auto forward = [&] { return model.loss(batch); };
    auto loss = plan.parallel ? plan.parallel->run(forward) : forward();
    batch = {};
    if (plan.accumulate > 1) loss = loss / plan.accumulate;
    scaler.scale(loss).backward();
    mean = mean.defined() ? mean + loss.detach() : loss.detach();
  }
  if (plan.clip_norm > 0) {
    scaler.unscale_(optimizer);
    torch::nn::utils::clip_grad_norm_(model.module().parameters(), plan.clip_norm);
  }
  scaler.step(optimizer);
  scaler.update();
  return mean;
}

namespace {

std::unique_ptr<torch::optim::Optimizer> still_optimizer(const std::string& kind, torch::nn::Module& module) {
  auto optimizer = make_optimizer(kind, 0.0, module);
  for (auto& group : optimizer->param_groups()) group.options().set_lr(0.0);
  return optimizer;
}

void make_states(torch::optim::Optimizer& optimizer, torch::nn::Module& module) {
  for (auto& parameter : module.parameters()) {
    if (parameter.requires_grad()) parameter.mutable_grad() = torch::zeros_like(parameter);
  }
  optimizer.step();
  drop_gradients(module);
}

}  // namespace

Trials::Trials(models::TrainableModel& model, const std::string& optimizer, uint64_t seed, Bytes limit)
    : model_(model),
      optimizer_(still_optimizer(optimizer, model.module())),
      scaler_(make_scaler(model, GradScalerOptions().init_scale(1))),  // so that no step is skipped
      seed_(seed),
      limit_(limit) {
  fixed_bytes_ = check_fixed_cost(model.module(), *optimizer_, limit, "--memory-limit");
  make_states(*optimizer_, model.module());
  scaler_.scale(torch::zeros({}));  // makes its tensors
  resting_ = memory_stats().current;
}

void Trials::step(const std::string& strategy, int64_t batch) {
  drop_gradients(model_.module());
  const Bytes left = memory_stats().current - resting_;
  if (left != 0)
    throw InternalError(fmt::format("[refrain] a step of {} left {} bytes behind; expected none", model_.name(), left));
  model_.set_strategy(strategy);
  model_.set_batch(batch);
  const StepInputs inputs{.batch = [this](int64_t) { return model_.synthetic_batch(seed_); }};
  train_step(model_, *optimizer_, scaler_, inputs);
}

BatchTrial Trials::run(const std::string& strategy, int64_t batch) {
  const auto only = LargestBatchOptions().min_batch(batch).max_batch(batch);
  return largest_batch([&](int64_t size) { step(strategy, size); }, limit_, only).trials.front();
}

MaxBatch find_max_batch(Trials& trials, const std::string& strategy) {
  const auto options = LargestBatchOptions().min_batch(trials.model().least_batch()).max_batch(models::kMostBatch);
  MaxBatch found{largest_batch([&](int64_t batch) { trials.step(strategy, batch); }, trials.limit(), options),
                 strategy};
  if (found.batch == 0) return found;
  const BatchTrial again = trials.run(strategy, found.batch);
  found.trials.push_back(again);
  if (again.fits && again.peak == found.peak) return found;
  throw InternalError(fmt::format(
      "[refrain] batch {} of {} under {} {} with a peak of {} bytes; expected {}, as before a batch "
      "that ran out of memory",
      found.batch, trials.model().name(), strategy, again.fits ? "fitted" : "did not fit", again.peak, found.peak));
}

Json max_batch_json(const MaxBatch& found, int64_t plain) {
  Json trials = Json::array();
  for (const auto& trial : found.trials) {
    trials.push_back({{"batch", trial.batch}, {"fits", trial.fits}, {"peak_bytes", trial.peak}});
  }
  const double factor = static_cast<double>(found.batch) / static_cast<double>(std::max<int64_t>(plain, 1));
  return {{"strategy", found.strategy},
          {"max_batch", found.batch},
          {"peak_bytes", found.peak},
          {"resident_peak_bytes", found.resident_peak},
          {"next_peak_bytes", found.next_batch > 0 ? Json(found.next_peak) : Json()},
          {"factor", plain > 0 ? Json(factor) : Json()},
          {"trials", trials}};
}

void check_any_fits(const std::vector<MaxBatch>& found, const Trials& trials) {
  if (std::any_of(found.begin(), found.end(), [](const auto& m) { return m.batch > 0; })) return;
  const auto& cheapest = *std::min_element(found.begin(), found.end(),
                                           [](const auto& a, const auto& b) { return a.next_peak < b.next_peak; });
  throw InvalidArgument(
      fmt::format("--memory-limit {}: weights, gradients and optimizer state would fit, the activations of batch {} do "
                  "not: strategy {} has the lowest peak, {} above the limit; raise it or choose smaller sizes",
                  format_bytes(trials.limit()), cheapest.next_batch, cheapest.strategy,
                  format_bytes(cheapest.next_peak - trials.limit())));
}

}  // namespace refrain::cli
