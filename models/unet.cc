#include "models/unet.h"

#include "models/base.h"
#include "models/layers.h"
#include "refrain/error.h"

namespace refrain::models {
namespace nn = torch::nn;

DoubleConvImpl::DoubleConvImpl(int64_t in, int64_t out) {
  for (int64_t channels : {in, out}) {
    layers_->push_back(conv(channels, out, 3));
    layers_->push_back(nn::BatchNorm2d(out));
    layers_->push_back(nn::ReLU(nn::ReLUOptions().inplace(true)));
  }
  register_module("layers", layers_);
}

torch::Tensor DoubleConvImpl::forward(const torch::Tensor& x) { return layers_->forward(x); }

UNetImpl::UNetImpl(int64_t w)
    : down1_(3, w),
      down2_(w, 2 * w),
      bottom_(2 * w, 4 * w),
      up2_(4 * w, 2 * w),
      up1_(2 * w, w),
      grow2_(nn::ConvTranspose2dOptions(4 * w, 2 * w, 2).stride(2)),
      grow1_(nn::ConvTranspose2dOptions(2 * w, w, 2).stride(2)),
      head_(nn::Conv2dOptions(w, 1, 1)) {
  register_module("down1", down1_);
  register_module("down2", down2_);
  register_module("bottom", bottom_);
  register_module("grow2", grow2_);
  register_module("up2", up2_);
  register_module("grow1", grow1_);
  register_module("up1", up1_);
  register_module("head", head_);
}

torch::Tensor UNetImpl::forward(const torch::Tensor& x, bool checkpointed) {
  auto halve_then = [](DoubleConv& block, const torch::Tensor& y) { return block->forward(torch::max_pool2d(y, 2)); };
  auto grow_then = [](nn::ConvTranspose2d& grow, DoubleConv& block, const torch::Tensor& y, const torch::Tensor& skip) {
    return block->forward(torch::cat({grow->forward(y), skip}, 1));
  };
  std::optional<ModuleScope> scope(std::in_place, "down1");
  auto skip1 = checkpoint_if(checkpointed, down1_, x);
  scope.emplace("down2");
  auto skip2 = checkpoint_if(checkpointed, halve_then, down2_, skip1);
  scope.emplace("bottom");
  auto y = checkpoint_if(checkpointed, halve_then, bottom_, skip2);
  scope.emplace("up2");
  y = checkpoint_if(checkpointed, grow_then, grow2_, up2_, y, skip2);
  scope.emplace("up1");
  y = checkpoint_if(checkpointed, grow_then, grow1_, up1_, y, skip1);
  scope.emplace("head");
  return head_->forward(y);
}

namespace {

class UNetModel final : public ModelBase {
 public:
  UNetModel(const std::string& name, const ModelOptions& o)
      : ModelBase(name, o, {"none", "per_block"}), net_(o.width) {}

  torch::nn::Module& module() override { return *net_; }

  Batch synthetic_batch(uint64_t seed) override {
    auto generator = own_generator(seed);
    auto input = torch::randn({options().batch, 3, options().image_size, options().image_size}, generator);
    return {input, (input.mean(1, true) > 0).to(torch::kFloat)};
  }

  std::string unit() const override { return "images"; }
  int64_t units_per_batch() const override { return options().batch; }

 protected:
  torch::Tensor forward(const Batch& batch) override { return net_->forward(batch.input, strategy_is("per_block")); }
  torch::Tensor criterion(const torch::Tensor& logits, const Batch& batch) const override {
    return torch::binary_cross_entropy_with_logits(logits, batch.target);
  }

 private:
  UNet net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_unet(const std::string& name, const ModelOptions& options) {
  if (options.image_size % 4 != 0) {
    throw InvalidArgument("image size " + std::to_string(options.image_size) + " for model " + name +
                          ": expected a multiple of 4 (it is halved twice)");
  }
  return std::make_unique<UNetModel>(name, options);
}

}  // namespace refrain::models
