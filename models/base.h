#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/strategy.h"
#include "models/zoo.h"
#include "refrain/checkpoint.h"
#include "refrain/selective.h"
#include "refrain/sequential.h"

namespace refrain::models {

/// What every model of the zoo shares: name, sizes, and the current strategy.
class ModelBase : public TrainableModel {
 public:
  ModelBase(std::string name, const ModelOptions& options, std::vector<std::string> strategies)
      : name_(std::move(name)), options_(options), strategies_(std::move(strategies)) {}

  const std::string& name() const override { return name_; }
  const ModelOptions& options() const override { return options_; }
  std::vector<std::string> strategies() const override { return strategies_; }
  void set_strategy(const std::string& strategy) override;
  const OffloadStore* offload_store() const override;
  torch::Tensor loss(const Batch& batch) final;
  int64_t row_length() const override { return 0; }
  void set_batch(int64_t batch) override;
  int64_t least_batch() const override { return 1; }

 protected:
  /// The model's output under the current strategy; autocast is on if asked for.
  virtual torch::Tensor forward(const Batch& batch) = 0;
  /// Scalar loss of a float output; autocast is off.
  virtual torch::Tensor criterion(const torch::Tensor& output, const Batch& batch) const = 0;

  bool strategy_is(const char* place) const { return strategy_.place == place; }
  /// How each block is checkpointed, if it is.
  const std::optional<CheckpointOptions>& block_options() const { return strategy_.block; }
  /// How the row is cut, if it is.
  const std::optional<Segments>& segments() const { return strategy_.segments; }

 private:
  std::string name_;
  ModelOptions options_;
  std::vector<std::string> strategies_;
  Strategy strategy_;
  std::map<OffloadTo, OffloadStore> stores_;  ///< of the strategies so far: what one has learned is for the next step
};

/// Seeded CPU generator of its own: the default one is not touched.
at::Generator own_generator(uint64_t seed);

/// A model that predicts the next token.
class TextModel : public ModelBase {
 public:
  using ModelBase::ModelBase;
  Batch synthetic_batch(uint64_t seed) override {
    auto text =
        torch::randint(options().vocab, {options().batch, options().seq + 1}, own_generator(seed), torch::kLong);
    return {text.narrow(1, 0, options().seq).contiguous(), text.narrow(1, 1, options().seq).contiguous()};
  }
  std::string unit() const override { return "tokens"; }
  int64_t units_per_batch() const override { return options().batch * options().seq; }

 protected:
  torch::Tensor criterion(const torch::Tensor& logits, const Batch& batch) const override {
    return torch::cross_entropy_loss(logits.view({-1, options().vocab}), batch.target.reshape({-1}));
  }
};

/// A model that says which class an image is of.
class ImageClassifier : public ModelBase {
 public:
  using ModelBase::ModelBase;
  Batch synthetic_batch(uint64_t seed) override {
    auto generator = own_generator(seed);
    const int64_t size = options().image_size;
    auto input = torch::randn({options().batch, 3, size, size}, generator);
    return {input, torch::randint(options().classes, {options().batch}, generator, torch::kLong)};
  }
  std::string unit() const override { return "images"; }
  int64_t units_per_batch() const override { return options().batch; }

 protected:
  torch::Tensor criterion(const torch::Tensor& logits, const Batch& batch) const override {
    return torch::cross_entropy_loss(logits, batch.target);
  }
};

/// A layer of a row: copied into regions that call it again.
using Layer = std::function<torch::Tensor(torch::Tensor)>;

/// `layers` one after the other: in regions as `segments` says, plainly without it.
torch::Tensor run_row(std::vector<Layer>& layers, const std::optional<Segments>& segments, torch::Tensor x);

/// `refrain::checkpoint(*options, fn, args...)` if there are options, else `fn(args...)`.
template <typename F, typename... Args>
decltype(auto) checkpoint_if(const std::optional<CheckpointOptions>& options, F&& fn, Args&&... args) {
  if (options) return refrain::checkpoint(*options, std::forward<F>(fn), std::forward<Args>(args)...);
  return refrain::detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
}

/// The same with the default options if `on`.
template <typename F, typename... Args>
decltype(auto) checkpoint_if(bool on, F&& fn, Args&&... args) {
  const auto options = on ? std::optional(CheckpointOptions()) : std::nullopt;
  return checkpoint_if(options, std::forward<F>(fn), std::forward<Args>(args)...);
}

}  // namespace refrain::models
