#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace refrain::tape {

/// The leaves that gradients of `outputs` would be accumulated in, each once, in the order a walk from the outputs meets them.
std::vector<at::Tensor> graph_leaves(const std::vector<at::Tensor>& outputs);

}  // namespace refrain::tape
