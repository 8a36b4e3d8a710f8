#include "models/resnet.h"

#include "models/base.h"
#include "models/layers.h"
#include "refrain/error.h"

namespace refrain::models {
namespace nn = torch::nn;
namespace {

nn::Sequential shortcut(int64_t in, int64_t out, int64_t stride) {
  nn::Sequential layers;
  if (stride != 1 || in != out) {
    layers->push_back(conv(in, out, 1, stride));
    layers->push_back(nn::BatchNorm2d(out));
  }
  return layers;
}

/// Two or three convolutions with BatchNorm, plus a shortcut.
class ResidualImpl : public nn::Module {
 public:
  ResidualImpl(int64_t in, int64_t planes, int64_t stride, bool bottleneck)
      : c1_(bottleneck ? conv(in, planes, 1) : conv(in, planes, 3, stride)),
        c2_(bottleneck ? conv(planes, planes, 3, stride) : conv(planes, planes, 3)),
        b1_(planes),
        b2_(planes),
        down_(shortcut(in, bottleneck ? 4 * planes : planes, stride)) {
    register_module("c1", c1_);
    register_module("b1", b1_);
    register_module("c2", c2_);
    register_module("b2", b2_);
    if (bottleneck) {
      c3_ = register_module("c3", conv(planes, 4 * planes, 1));
      b3_ = register_module("b3", nn::BatchNorm2d(4 * planes));
    }
    if (!down_->is_empty()) register_module("down", down_);
  }

  torch::Tensor forward(torch::Tensor x) {
    auto y = b2_->forward(c2_->forward(b1_->forward(c1_->forward(x)).relu_()));
    if (c3_) y = b3_->forward(c3_->forward(y.relu_()));
    return (y + (down_->is_empty() ? x : down_->forward(x))).relu_();
  }

 private:
  nn::Conv2d c1_, c2_, c3_{nullptr};
  nn::BatchNorm2d b1_, b2_, b3_{nullptr};
  nn::Sequential down_;
};
TORCH_MODULE(Residual);

using Options = std::optional<CheckpointOptions>;

torch::Tensor run_stage(const nn::Sequential& stage, torch::Tensor x, const Options& per_block) {
  for (size_t i = 0; i < stage->size(); ++i) {
    ModuleScope scope(std::to_string(i));
    x = checkpoint_if(per_block, stage->ptr<ResidualImpl>(i), x);
  }
  return x;
}

}  // namespace

ResNetImpl::ResNetImpl(const std::array<int64_t, 4>& blocks, bool bottleneck, int64_t classes) {
  stem_->push_back(conv(3, 64, 7, 2));
  stem_->push_back(nn::BatchNorm2d(64));
  stem_->push_back(nn::ReLU(nn::ReLUOptions().inplace(true)));
  stem_->push_back(nn::MaxPool2d(nn::MaxPool2dOptions(3).stride(2).padding(1)));
  register_module("stem", stem_);
  int64_t in = 64, planes = 64;
  for (size_t s = 0; s < stages_.size(); ++s, planes *= 2) {
    for (int64_t k = 0; k < blocks[s]; ++k) {
      stages_[s]->push_back(Residual(in, planes, s > 0 && k == 0 ? 2 : 1, bottleneck));
      in = bottleneck ? 4 * planes : planes;
    }
    register_module("layer" + std::to_string(s + 1), stages_[s]);
  }
  head_->push_back(nn::AdaptiveAvgPool2d(1));
  head_->push_back(nn::Flatten());
  head_->push_back(nn::Linear(in, classes));
  register_module("head", head_);
}

torch::Tensor ResNetImpl::forward(torch::Tensor x, ResNetStrategy strategy, const CheckpointOptions& options) {
  auto run = [](nn::Sequential& layers, const torch::Tensor& y) { return layers->forward(y); };
  const auto if_strategy = [&](ResNetStrategy wanted) { return strategy == wanted ? Options(options) : std::nullopt; };
  const auto everywhere = if_strategy(ResNetStrategy::kPerBlock);
  std::optional<ModuleScope> scope(std::in_place, "stem");
  x = checkpoint_if(everywhere, run, stem_, x);
  for (size_t s = 0; s < stages_.size(); ++s) {
    const auto by_block = s >= 2 && !everywhere ? if_strategy(ResNetStrategy::kAggressive) : everywhere;
    scope.emplace("layer" + std::to_string(s + 1));
    x = checkpoint_if(if_strategy(ResNetStrategy::kPerStage), run_stage, stages_[s], x, by_block);
  }
  scope.emplace("head");
  return checkpoint_if(everywhere, run, head_, x);
}

namespace {

/// The last stage has one value a channel and example if images have at most 32 pixels a side.
int64_t least_batch_of(const ModelOptions& options) { return options.image_size <= 32 ? 2 : 1; }

class ResNetModel final : public ImageClassifier {
 public:
  ResNetModel(const std::string& name, const ModelOptions& o)
      : ImageClassifier(name, o, {"none", "per_stage", "per_block", "selective", "aggressive"}),
        net_(name == "resnet50" ? std::array<int64_t, 4>{3, 4, 6, 3} : std::array<int64_t, 4>{2, 2, 2, 2},
             name == "resnet50", o.classes) {}

  torch::nn::Module& module() override { return *net_; }
  int64_t least_batch() const override { return least_batch_of(options()); }

 protected:
  torch::Tensor forward(const Batch& batch) override {
    const auto& per_block = block_options();
    const auto strategy = per_block                   ? ResNetStrategy::kPerBlock
                          : strategy_is("per_stage")  ? ResNetStrategy::kPerStage
                          : strategy_is("aggressive") ? ResNetStrategy::kAggressive
                                                      : ResNetStrategy::kNone;
    return net_->forward(batch.input, strategy, per_block.value_or(CheckpointOptions()));
  }

 private:
  ResNet net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_resnet(const std::string& name, const ModelOptions& options) {
  if (options.batch < least_batch_of(options)) {
    throw InvalidArgument(
        "batch 1 with image size " + std::to_string(options.image_size) + " for model " + name +
        ": BatchNorm needs more than one value per channel; use a batch of 2 or images above 32 pixels");
  }
  return std::make_unique<ResNetModel>(name, options);
}

}  // namespace refrain::models
