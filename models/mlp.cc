#include "models/mlp.h"

#include "models/base.h"

namespace refrain::models {

MlpImpl::MlpImpl(int64_t input, int64_t width, int64_t depth) {
  register_module("layers", layers_);
  for (int64_t i = 0; i < depth; ++i) layers_->push_back(torch::nn::Linear(i == 0 ? input : width, width));
}

torch::Tensor MlpImpl::forward(torch::Tensor x, const std::optional<Segments>& segments) {
  std::vector<Layer> layers;
  for (size_t i = 0; i < layers_->size(); ++i) {
    layers.push_back([i, linear = layers_->ptr<torch::nn::LinearImpl>(i)](torch::Tensor y) {
      ModuleScope scope("layers." + std::to_string(i));
      return torch::relu(linear->forward(y));
    });
  }
  return run_row(layers, segments, std::move(x));
}

namespace {

class MlpModel final : public ModelBase {
 public:
  MlpModel(const std::string& name, const ModelOptions& options)
      : ModelBase(name, options, {"none", "per_block", "segments"}), net_(kMlpInput, options.width, options.depth) {}

  torch::nn::Module& module() override { return *net_; }

  Batch synthetic_batch(uint64_t seed) override {
    auto generator = own_generator(seed);
    auto input = torch::randn({options().batch, kMlpInput}, generator);
    return {input, torch::rand({options().batch, options().width}, generator)};
  }

  std::string unit() const override { return "rows"; }
  int64_t units_per_batch() const override { return options().batch; }
  int64_t row_length() const override { return options().depth; }

 protected:
  torch::Tensor forward(const Batch& batch) override { return net_->forward(batch.input, cut()); }
  torch::Tensor criterion(const torch::Tensor& output, const Batch& batch) const override {
    return torch::mse_loss(output, batch.target);
  }

 private:
  std::optional<Segments> cut() const {
    if (strategy_is("per_block")) return Segments::uniform(suggest_segments(options().depth));
    if (strategy_is("per_layer")) return Segments::uniform(1);
    return segments();
  }

  Mlp net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_mlp(const std::string& name, const ModelOptions& options) {
  return std::make_unique<MlpModel>(name, options);
}

}  // namespace refrain::models
