#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "refrain/offload.h"

namespace refrain::models {

/// One training example set: inputs as the model's `loss` wants them.
struct Batch {
  torch::Tensor input;
  torch::Tensor target;
};

/// What a user may override; 0 (or a negative dropout) means the preset's own size.
struct ModelOptions {
  int64_t batch = 0;
  int64_t seq = 0;               ///< gpt, lstm; leaves of a treelstm's tree
  int64_t image_size = 0;        ///< resnet, densenet, unet (square, pixels)
  int64_t depth = 0;             ///< mlp and lstm layers, transformer blocks
  int64_t width = 0;             ///< mlp and lstm hidden size, transformer d_model, unet channels at full size
  int64_t vocab = 0;             ///< gpt, lstm, treelstm; 256 = bytes
  int64_t classes = 0;           ///< resnet, densenet, treelstm
  double dropout = -1.0;         ///< gpt
  uint64_t seed = 0;             ///< initialisation; the same seed gives the same weights
  std::string offload_dir = {};  ///< where the strategy `offload:disk` has its file; "": the system's temporary folder
  std::optional<torch::ScalarType> amp = {};  ///< forward under autocast of this dtype, the loss in float
};

/// A model that can be trained, timed and verified by name. The strategy only chooses where `refrain::checkpoint` is
/// called; parameters, names and results are the same under all of them.
class TrainableModel {
 public:
  virtual ~TrainableModel() = default;
  virtual const std::string& name() const = 0;
  virtual torch::nn::Module& module() = 0;
  /// Forward and scalar loss under the current strategy.
  virtual torch::Tensor loss(const Batch& batch) = 0;
  /// Random batch of the preset's size from its own generator: does not touch the default one.
  virtual Batch synthetic_batch(uint64_t seed) = 0;
  /// "none" first; `set_strategy` also takes variants of them, see models/strategy.h.
  virtual std::vector<std::string> strategies() const = 0;
  /// @throws InvalidArgument listing the known ones.
  virtual void set_strategy(const std::string& strategy) = 0;
  /// Where the current strategy puts bytes; null if it does not offload.
  virtual const OffloadStore* offload_store() const = 0;
  /// What one example counts as in throughput: "tokens", "images", "rows"; and how many a batch has.
  virtual std::string unit() const = 0;
  virtual int64_t units_per_batch() const = 0;
  /// The resolved sizes (no zeros).
  virtual const ModelOptions& options() const = 0;
  /// Equal layers or blocks in a row, which the strategies `segments` (suggested number) and `segments:N` cut and
  /// `per_layer` checkpoints layer by layer; 0 if the model is no such row.
  virtual int64_t row_length() const = 0;
  /// Examples in synthetic batches from now on. @throws InvalidArgument if out of range.
  virtual void set_batch(int64_t batch) = 0;
  virtual int64_t least_batch() const = 0;
};

inline constexpr int64_t kMostBatch = 65536;

/// mlp, gptsmall, gpt, blocks-small, blocks, resnet18, resnet50, densenet121, unet, lstm, lstm-ragged, treelstm.
std::vector<std::string> model_names();

/// @throws InvalidArgument on an unknown name (lists the known ones, nearest first) or a size out of range.
std::unique_ptr<TrainableModel> make_model(const std::string& name, const ModelOptions& options = {});

}  // namespace refrain::models
