#include "models/mlp.h"

#include <algorithm>
#include <cmath>

#include "models/base.h"

namespace refrain::models {

MlpImpl::MlpImpl(int64_t input, int64_t width, int64_t depth) {
  register_module("layers", layers_);
  for (int64_t i = 0; i < depth; ++i) layers_->push_back(torch::nn::Linear(i == 0 ? input : width, width));
}

torch::Tensor MlpImpl::forward(torch::Tensor x, bool checkpointed) {
  const auto depth = static_cast<int64_t>(layers_->size());
  const auto group = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(depth))));
  for (int64_t begin = 0; begin < depth; begin += group) {
    const int64_t end = std::min(begin + group, depth);
    x = checkpoint_if(
        checkpointed,
        [&](torch::Tensor y) {
          for (int64_t i = begin; i < end; ++i) y = torch::relu(layers_->ptr<torch::nn::LinearImpl>(i)->forward(y));
          return y;
        },
        x);
  }
  return x;
}

namespace {

class MlpModel final : public ModelBase {
 public:
  MlpModel(const std::string& name, const ModelOptions& options)
      : ModelBase(name, options, {"none", "per_block"}), net_(kMlpInput, options.width, options.depth) {}

  torch::nn::Module& module() override { return *net_; }

  torch::Tensor loss(const Batch& batch) override {
    return torch::mse_loss(net_->forward(batch.input, strategy_is("per_block")), batch.target);
  }

  Batch synthetic_batch(uint64_t seed) override {
    auto generator = own_generator(seed);
    auto input = torch::randn({options().batch, kMlpInput}, generator);
    return {input, torch::rand({options().batch, options().width}, generator)};
  }

  std::string unit() const override { return "rows"; }
  int64_t units_per_batch() const override { return options().batch; }

 private:
  Mlp net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_mlp(const std::string& name, const ModelOptions& options) {
  return std::make_unique<MlpModel>(name, options);
}

}  // namespace refrain::models
