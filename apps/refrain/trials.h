#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "apps/refrain/json_file.h"
#include "models/zoo.h"
#include "refrain/amp.h"
#include "refrain/bytes.h"
#include "refrain/data_parallel.h"

namespace refrain::cli {

/// `--memory-limit`. @throws InvalidArgument if it is no size or more than the machine has.
Bytes parse_limit(const std::string& text);

/// @throws InvalidArgument if parameters, buffers, gradients and optimizer state, which a step needs at any batch and
///         under any strategy, are not below `limit`: names the part that is the first not to fit, and by how much.
/// @return their sum.
Bytes check_fixed_cost(Bytes limit, models::TrainableModel& model, const torch::optim::Optimizer& optimizer);

/// What a step is made of beside model, optimizer and scaler.
struct StepPlan {
  std::function<models::Batch(int64_t)> batch;            ///< by number, from 0; each is dropped after its forward
  int64_t accumulate = 1;                                 ///< batches
  double clip_norm = 0.0;                                 ///< 0: gradients stay as they are
  DataParallel<torch::nn::Module>* parallel = nullptr;    ///< averages gradients over ranks
};

/// zero_grad, forward and backward of each batch, step. @return the mean of their losses on this rank, not scaled.
torch::Tensor train_step(models::TrainableModel& model, torch::optim::Optimizer& optimizer, GradScaler& scaler,
                         const StepPlan& plan);

/// One training step. Bytes as `memory_stats()`: all tensors of the process.
struct Trial {
  int64_t batch = 0;
  bool fits = false;
  Bytes peak = 0;  ///< the level reached before it was refused, if it does not fit
  Bytes resident_peak = 0;  ///< likewise, of the process with everything
};

/// Runs single training steps of any strategy, batch and limit, as `refrain train` does once the optimizer's state is
/// there. Weights stay as they are.
class Trials {
 public:
  /// @param optimizer  adam, adamw or sgd. The limit is checked against the fixed cost.
  Trials(models::TrainableModel& model, const std::string& optimizer, uint64_t seed, Bytes limit);

  /// @throws Error if it leaves memory behind.
  Trial run(const std::string& strategy, int64_t batch);
  /// Without the limit.
  Bytes peak(const std::string& strategy, int64_t batch);

  models::TrainableModel& model() { return model_; }
  Bytes limit() const { return limit_; }
  /// Parameters, buffers, gradients and optimizer state.
  Bytes fixed_bytes() const { return fixed_bytes_; }

 private:
  Trial run_under(Bytes limit, const std::string& strategy, int64_t batch);

  models::TrainableModel& model_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  GradScaler scaler_;
  uint64_t seed_;
  Bytes limit_, fixed_bytes_;
};

/// The largest batch of one strategy.
struct MaxBatch {
  std::string strategy;
  int64_t batch = 0;               ///< 0: not even the least one fits
  int64_t next_batch = 0;          ///< does not fit; 0 if `batch` is the most a model takes
  Bytes peak = 0, next_peak = 0;   ///< of both, the second without the limit
  Bytes resident_peak = 0;
  std::vector<Trial> trials = {};  ///< in order
};

/// Doubles the batch until it does not fit, then halves the gap; but as soon as two trials fit, tries where the straight
/// line of peak over batch meets the limit. Ends when one batch fitted and the next did not; tries the one that fitted
/// once more. @throws Error if its peak is another one then.
MaxBatch find_max_batch(Trials& trials, const std::string& strategy);

/// As in docs/design/report.md. @param plain  largest batch of "none". `factor` is null if it is 0.
Json max_batch_json(const MaxBatch& found, int64_t plain);

/// @throws InvalidArgument if not even the least batch fits under any strategy: says what the cheapest one lacks.
void check_any_fits(const std::vector<MaxBatch>& found, const Trials& trials);

}  // namespace refrain::cli
