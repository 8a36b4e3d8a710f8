#pragma once

#include <array>
#include <vector>

#include "models/zoo.h"
#include "refrain/checkpoint.h"

namespace refrain::models {

/// Where a DenseNet calls `refrain::checkpoint`.
enum class DenseNetStrategy {
  kNone,
  kPerStage,  ///< each dense block with the transition after it
  kPerBlock,  ///< the stem, each dense layer with the concatenation it reads, each transition, and the head
};

/// DenseNet with bottleneck layers: each layer of a dense block reads the results of all layers before it.
/// Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; regions of `kPerBlock` as in Pleiss et al.,
/// "Memory-Efficient Implementation of DenseNets", 2017, but with the convolutions.
class DenseNetImpl : public torch::nn::Module {
 public:
  /// @param layers  dense layers of each block.  @param growth  channels that a layer adds.
  DenseNetImpl(const std::array<int64_t, 4>& layers, int64_t growth, int64_t classes);
  /// @param options  of every region.
  torch::Tensor forward(torch::Tensor x, DenseNetStrategy strategy = DenseNetStrategy::kNone,
                        const CheckpointOptions& options = {});

 private:
  torch::nn::Sequential stem_, head_;
  std::vector<torch::nn::ModuleList> blocks_;
  std::vector<torch::nn::Sequential> transitions_;
};
TORCH_MODULE(DenseNet);

/// `densenet121`. Loss: cross entropy.
std::unique_ptr<TrainableModel> make_densenet(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
