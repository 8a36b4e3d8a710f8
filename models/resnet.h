#pragma once

#include <array>

#include "models/zoo.h"
#include "refrain/checkpoint.h"

namespace refrain::models {

/// Where a ResNet calls `refrain::checkpoint`.
enum class ResNetStrategy {
  kNone,
  kPerStage,    ///< each of the four stages
  kPerBlock,    ///< the stem, each residual block, and the head
  kAggressive,  ///< each residual block of the last two stages only (the notebook's name for it)
};

/// ResNet with in-place ReLU. Source: He et al., "Deep Residual Learning for Image Recognition", 2016; in bottlenecks
/// the stride is in the 3x3 convolution.
class ResNetImpl : public torch::nn::Module {
 public:
  /// @param blocks  residual blocks of each stage.
  /// @param bottleneck  three convolutions a block (as in ResNet-50), else two.
  ResNetImpl(const std::array<int64_t, 4>& blocks, bool bottleneck, int64_t classes);
  /// @param options  of every region.
  torch::Tensor forward(torch::Tensor x, ResNetStrategy strategy = ResNetStrategy::kNone,
                        const CheckpointOptions& options = {});

 private:
  torch::nn::Sequential stem_, head_;
  std::array<torch::nn::Sequential, 4> stages_;
};
TORCH_MODULE(ResNet);

/// `resnet18`, `resnet50`. Loss: cross entropy.
std::unique_ptr<TrainableModel> make_resnet(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
