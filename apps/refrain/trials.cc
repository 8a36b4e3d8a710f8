#include "apps/refrain/trials.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <limits>
#include <new>
#include <thread>

#include "apps/refrain/failures.h"
#include "apps/refrain/steps.h"
#include "refrain/breakdown.h"
#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain::cli {

Bytes parse_limit(const std::string& text) {
  const Bytes limit = parse_bytes(text), machine = machine_memory();
  if (limit <= machine || machine == 0) return limit;
  throw InvalidArgument(fmt::format("--memory-limit {}: found a machine of {}; expected no more than that",
                                    format_bytes(limit), format_bytes(machine)));
}

Bytes check_fixed_cost(Bytes limit, models::TrainableModel& model, const torch::optim::Optimizer& optimizer) {
  const MemoryParts fixed = estimate_fixed(model.module(), optimizer);
  Bytes buffers = 0;
  for (const auto& buffer : model.module().buffers()) buffers += static_cast<Bytes>(buffer.nbytes());
  const std::pair<const char*, Bytes> parts[] = {{"parameters", fixed.parameters},
                                                 {"buffers", buffers},
                                                 {"gradients", fixed.gradients},
                                                 {"optimizer state", fixed.optimizer_states}};
  const Bytes total = fixed.fixed() + buffers;
  Bytes sum = 0;
  std::string fitting;
  for (const auto& [name, bytes] : parts) {
    sum += bytes;
    const std::string part = fmt::format("{} ({})", name, format_bytes(bytes));
    if (sum < limit) {
      if (bytes > 0) fitting += (fitting.empty() ? "" : ", ") + part;
      continue;
    }
    throw InvalidArgument(
        fmt::format("--memory-limit {}: expected more than the {} of weights, gradients and optimizer state of {}: "
                    "{}{} {} not, by {}; raise it or choose smaller sizes",
                    format_bytes(limit), format_bytes(total), model.name(),
                    fitting.empty() ? "" : fitting + " would fit, ", part, bytes > 0 && name[0] == 'o' ? "does" : "do",
                    format_bytes(sum - limit)));
  }
  return total;
}

torch::Tensor train_step(models::TrainableModel& model, torch::optim::Optimizer& optimizer, GradScaler& scaler,
                         const StepPlan& plan) {
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

/// After an error in backward, LibTorch's engine keeps the rest of the graph, and so its activations, in a queue of the
/// thread that called it, until that thread ends.
void on_own_thread(const std::function<void()>& step) {
  std::exception_ptr error;
  std::thread thread([&] {
    try {
      step();
    } catch (...) {
      error = std::current_exception();
    }
  });
  thread.join();
  if (error) std::rethrow_exception(error);
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
  fixed_bytes_ = check_fixed_cost(limit, model, *optimizer_);
  make_states(*optimizer_, model.module());
  scaler_.scale(torch::zeros({}));  // makes its tensors
}

Trial Trials::run(const std::string& strategy, int64_t batch) { return run_under(limit_, strategy, batch); }

Bytes Trials::peak(const std::string& strategy, int64_t batch) {
  return run_under(std::numeric_limits<Bytes>::max(), strategy, batch).peak;
}

Trial Trials::run_under(Bytes limit, const std::string& strategy, int64_t batch) {
  model_.set_strategy(strategy);
  model_.set_batch(batch);
  const Bytes before = memory_stats().current;
  Trial trial{.batch = batch};
  const StepPlan plan{.batch = [this](int64_t) { return model_.synthetic_batch(seed_); }};
  release_free_memory();  // of a larger batch before
  reset_peak_memory();
  try {
    const MemoryLimit guard(limit);
    on_own_thread([&] { train_step(model_, *optimizer_, scaler_, plan); });
    trial.fits = true;
  } catch (const c10::Error& error) {
    if (!is_allocation_failure(error)) throw;
  } catch (const std::bad_alloc&) {
  }
  trial.peak = memory_stats().peak;
  trial.resident_peak = memory_stats().resident_peak;
  drop_gradients(model_.module());
  const Bytes left = memory_stats().current - before;
  if (left != 0) {
    throw Error(fmt::format("[refrain] a step of {} under {} at batch {} {} and left {} bytes behind; expected none",
                            model_.name(), strategy, batch, trial.fits ? "fitted" : "ran out of memory", left));
  }
  return trial;
}

namespace {

/// Where the line through the two largest batches that fitted meets the limit.
std::optional<int64_t> batch_at_limit(const std::vector<Trial>& trials, Bytes limit) {
  const Trial *last = nullptr, *before = nullptr;
  for (const auto& trial : trials) {
    if (!trial.fits) continue;
    if (last == nullptr || trial.batch > last->batch) {
      before = last;
      last = &trial;
    } else if (before == nullptr || trial.batch > before->batch) {
      before = &trial;
    }
  }
  if (before == nullptr || last->peak <= before->peak) return std::nullopt;
  const double per_example =
      static_cast<double>(last->peak - before->peak) / static_cast<double>(last->batch - before->batch);
  const double more = static_cast<double>(limit - last->peak) / per_example;
  return last->batch + static_cast<int64_t>(std::min(more, static_cast<double>(models::kMostBatch)));
}

void confirm(Trials& trials, MaxBatch& found) {
  const Trial again = trials.run(found.strategy, found.batch);
  found.trials.push_back(again);
  if (again.fits && again.peak == found.peak) return;
  throw Error(fmt::format("[refrain] batch {} of {} under {} {} with a peak of {} bytes; expected {}, as before a batch "
                          "that ran out of memory",
                          found.batch, trials.model().name(), found.strategy, again.fits ? "fitted" : "did not fit",
                          again.peak, found.peak));
}

}  // namespace

MaxBatch find_max_batch(Trials& trials, const std::string& strategy) {
  constexpr int64_t kLongestLeap = 8;
  constexpr size_t kGuesses = 8;
  MaxBatch found{.strategy = strategy};
  const int64_t least = trials.model().least_batch();
  int64_t fits = least - 1, fails = models::kMostBatch + 1, next = least;
  while (fails - fits > 1) {
    const Trial trial = trials.run(strategy, next);
    found.trials.push_back(trial);
    if (trial.fits) {
      fits = next;
      found.peak = trial.peak;
      found.resident_peak = trial.resident_peak;
    } else {
      fails = next;
    }
    const bool is_open = fails > models::kMostBatch;
    const auto guess = batch_at_limit(found.trials, trials.limit());
    next = is_open ? 2 * fits : fits + (fails - fits) / 2;
    if (guess && (is_open || found.trials.size() < kGuesses)) next = *guess;
    if (is_open) next = std::min(next, kLongestLeap * fits);
    next = std::clamp(next, fits + 1, std::max(fits + 1, fails - 1));
  }
  found.batch = fits < least ? 0 : fits;
  if (fails <= models::kMostBatch) {
    found.next_batch = fails;
    found.next_peak = trials.peak(strategy, fails);
  }
  if (found.batch > 0) confirm(trials, found);
  return found;
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
                  "not: {} of the strategies needs least, {} too much; raise it or choose smaller sizes",
                  format_bytes(trials.limit()), cheapest.next_batch, cheapest.strategy,
                  format_bytes(cheapest.next_peak - trials.limit())));
}

}  // namespace refrain::cli
