#pragma once

#include "models/zoo.h"

namespace refrain::models {

/// Two 3x3 convolutions, each with BatchNorm and in-place ReLU.
class DoubleConvImpl : public torch::nn::Module {
 public:
  DoubleConvImpl(int64_t in, int64_t out);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::nn::Sequential layers_;
};
TORCH_MODULE(DoubleConv);

/// Small U-Net of three levels: the skips are read far from where they were made.
/// Source: Ronneberger et al., "U-Net", 2015; with padding, BatchNorm and fewer channels.
class UNetImpl : public torch::nn::Module {
 public:
  explicit UNetImpl(int64_t width);
  /// @param x  [batch, 3, H, W], H and W multiples of 4.  @return logits [batch, 1, H, W].
  torch::Tensor forward(const torch::Tensor& x, bool checkpointed = false);

 private:
  DoubleConv down1_, down2_, bottom_, up2_, up1_;
  torch::nn::ConvTranspose2d grow2_, grow1_;
  torch::nn::Conv2d head_;
};
TORCH_MODULE(UNet);

/// Loss: binary cross entropy for each pixel against a mask.
std::unique_ptr<TrainableModel> make_unet(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
