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
#include "refrain/largest_batch.h"

namespace refrain::cli {

/// `--memory-limit`. @throws InvalidArgument if it is no size or more than the machine has.
Bytes parse_limit(const std::string& text);

/// What a step is made of beside model, optimizer and scaler.
struct StepInputs {
  std::function<models::Batch(int64_t)> batch;          ///< by number, from 0; each is dropped after its forward
  int64_t accumulate = 1;                               ///< batches
  double clip_norm = 0.0;                               ///< 0: gradients stay as they are
  DataParallel<torch::nn::Module>* parallel = nullptr;  ///< averages gradients over ranks
};

/// zero_grad, forward and backward of each batch, step. @return the mean of their losses on this rank, not scaled.
torch::Tensor train_step(models::TrainableModel& model, torch::optim::Optimizer& optimizer, GradScaler& scaler,
                         const StepInputs& plan);

/// Runs single training steps of any strategy, batch and limit, as `refrain train` does once the optimizer's state is
/// there. Weights stay as they are.
class Trials {
 public:
  /// @param optimizer  adam, adamw or sgd. The limit is checked against the fixed cost.
  Trials(models::TrainableModel& model, const std::string& optimizer, uint64_t seed, Bytes limit);

  /// One step. @throws InternalError if the one before left memory behind.
  void step(const std::string& strategy, int64_t batch);
  /// One step under the limit.
  BatchTrial run(const std::string& strategy, int64_t batch);

  models::TrainableModel& model() { return model_; }
  Bytes limit() const { return limit_; }
  /// Parameters, buffers, gradients and optimizer state.
  Bytes fixed_bytes() const { return fixed_bytes_; }

 private:
  models::TrainableModel& model_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  GradScaler scaler_;
  uint64_t seed_;
  Bytes limit_, fixed_bytes_;
  Bytes resting_ = 0;  ///< level between steps
};

/// The largest batch of one strategy.
struct MaxBatch : LargestBatch {
  std::string strategy;
};

/// `largest_batch` of a strategy; runs the one found once more. @throws InternalError if its peak is another one then.
MaxBatch find_max_batch(Trials& trials, const std::string& strategy);

/// As in docs/design/report.md. @param plain  largest batch of "none". `factor` is null if it is 0.
Json max_batch_json(const MaxBatch& found, int64_t plain);

/// @throws InvalidArgument if not even the least batch fits under any strategy: says what the cheapest one lacks.
void check_any_fits(const std::vector<MaxBatch>& found, const Trials& trials);

}  // namespace refrain::cli
