#include "models/densenet.h"

#include "models/base.h"
#include "models/layers.h"
#include "refrain/error.h"

namespace refrain::models {
namespace nn = torch::nn;
namespace {

constexpr int64_t kBottleneck = 4;  ///< channels of a bottleneck over the growth

nn::ReLU relu() { return nn::ReLU(nn::ReLUOptions().inplace(true)); }

nn::Sequential dense_layer(int64_t in, int64_t growth) {
  const int64_t middle = kBottleneck * growth;
  return nn::Sequential(nn::BatchNorm2d(in), relu(), conv(in, middle, 1), nn::BatchNorm2d(middle), relu(),
                        conv(middle, growth, 3));
}

nn::Sequential transition(int64_t in) {
  return nn::Sequential(nn::BatchNorm2d(in), relu(), conv(in, in / 2, 1),
                        nn::AvgPool2d(nn::AvgPool2dOptions(2).stride(2)));
}

using Options = std::optional<CheckpointOptions>;

torch::Tensor run(nn::Sequential& layers, const torch::Tensor& x) { return layers->forward(x); }

torch::Tensor run_joined(nn::SequentialImpl& layer, const std::vector<torch::Tensor>& features) {
  return layer.forward(torch::cat(features, 1));
}

torch::Tensor run_block(nn::ModuleList& block, const torch::Tensor& x, const Options& per_layer) {
  std::vector<torch::Tensor> features{x};
  for (size_t i = 0; i < block->size(); ++i) {
    ModuleScope scope(std::to_string(i));
    features.push_back(checkpoint_if(per_layer, run_joined, *block[i]->as<nn::Sequential>(), features));
  }
  return torch::cat(features, 1);
}

}  // namespace

DenseNetImpl::DenseNetImpl(const std::array<int64_t, 4>& layers, int64_t growth, int64_t classes) {
  int64_t channels = 2 * growth;
  stem_ = nn::Sequential(conv(3, channels, 7, 2), nn::BatchNorm2d(channels), relu(),
                         nn::MaxPool2d(nn::MaxPool2dOptions(3).stride(2).padding(1)));
  register_module("stem", stem_);
  for (size_t b = 0; b < layers.size(); ++b) {
    nn::ModuleList block;
    for (int64_t i = 0; i < layers[b]; ++i, channels += growth) block->push_back(dense_layer(channels, growth));
    blocks_.push_back(register_module("block" + std::to_string(b + 1), block));
    if (b + 1 == layers.size()) break;
    transitions_.push_back(register_module("transition" + std::to_string(b + 1), transition(channels)));
    channels /= 2;
  }
  head_ = nn::Sequential(nn::BatchNorm2d(channels), relu(), nn::AdaptiveAvgPool2d(1), nn::Flatten(),
                         nn::Linear(channels, classes));
  register_module("head", head_);
}

torch::Tensor DenseNetImpl::forward(torch::Tensor x, DenseNetStrategy strategy, const CheckpointOptions& options) {
  const auto if_strategy = [&](DenseNetStrategy wanted) {
    return strategy == wanted ? Options(options) : std::nullopt;
  };
  const auto per_block = if_strategy(DenseNetStrategy::kPerBlock), per_stage = if_strategy(DenseNetStrategy::kPerStage);
  std::optional<ModuleScope> scope(std::in_place, "stem");
  x = checkpoint_if(per_block, run, stem_, x);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    scope.emplace("block" + std::to_string(b + 1));
    x = checkpoint_if(
        per_stage,
        [](nn::ModuleList& block, nn::Sequential* next, const torch::Tensor& in, const Options& per_layer) {
          const auto y = run_block(block, in, per_layer);
          return next ? checkpoint_if(per_layer, run, *next, y) : y;
        },
        blocks_[b], b < transitions_.size() ? &transitions_[b] : nullptr, x, per_block);
  }
  scope.emplace("head");
  return checkpoint_if(per_block, run, head_, x);
}

namespace {

class DenseNetModel final : public ImageClassifier {
 public:
  DenseNetModel(const std::string& name, const ModelOptions& o)
      : ImageClassifier(name, o, {"none", "per_stage", "per_block", "selective"}),
        net_(std::array<int64_t, 4>{6, 12, 24, 16}, 32, o.classes) {}

  torch::nn::Module& module() override { return *net_; }
  int64_t least_batch() const override { return least_batch_of(options()); }

  /// The last block has one value a channel and example if images have fewer than 64 pixels a side.
  static int64_t least_batch_of(const ModelOptions& options) { return options.image_size < 64 ? 2 : 1; }

 protected:
  torch::Tensor forward(const Batch& batch) override {
    const auto& per_block = block_options();
    const auto strategy = per_block                  ? DenseNetStrategy::kPerBlock
                          : strategy_is("per_stage") ? DenseNetStrategy::kPerStage
                                                     : DenseNetStrategy::kNone;
    return net_->forward(batch.input, strategy, per_block.value_or(CheckpointOptions()));
  }

 private:
  DenseNet net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_densenet(const std::string& name, const ModelOptions& options) {
  if (options.image_size < 32) {
    throw InvalidArgument("image size " + std::to_string(options.image_size) + " for model " + name +
                          ": expected 32 or more (it is halved five times)");
  }
  if (options.batch < DenseNetModel::least_batch_of(options)) {
    throw InvalidArgument(
        "batch 1 with image size " + std::to_string(options.image_size) + " for model " + name +
        ": BatchNorm needs more than one value per channel; use a batch of 2 or images of 64 pixels or more");
  }
  return std::make_unique<DenseNetModel>(name, options);
}

}  // namespace refrain::models
