#pragma once

#include <torch/torch.h>

namespace refrain::models {

/// A convolution without bias that keeps the image's size but for the stride. @param kernel  odd.
inline torch::nn::Conv2d conv(int64_t in, int64_t out, int64_t kernel, int64_t stride = 1) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
}

}  // namespace refrain::models
