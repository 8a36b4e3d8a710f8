#pragma once

#include <optional>

#include "models/zoo.h"
#include "refrain/sequential.h"

namespace refrain::models {

/// The notebook's deep network: `depth` times Linear and ReLU, `kMlpInput` numbers in, `width` out.
class MlpImpl : public torch::nn::Module {
 public:
  MlpImpl(int64_t input, int64_t width, int64_t depth);
  /// Each segment in a region of its own, if any are given.
  torch::Tensor forward(torch::Tensor x, const std::optional<Segments>& segments = {});

 private:
  torch::nn::ModuleList layers_;
};
TORCH_MODULE(Mlp);

inline constexpr int64_t kMlpInput = 1024;

/// `per_block` checkpoints groups of sqrt(depth) layers, the last too: sqrt(n) groups of sqrt(n) layers keep the fewest
/// values. Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 4.
/// Loss: mean squared error against `width` numbers a row.
std::unique_ptr<TrainableModel> make_mlp(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
