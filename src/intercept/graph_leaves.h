#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <vector>

namespace refrain::tape {

/// The leaves that gradients of `outputs` would be accumulated in, each once, in the order a walk from the outputs meets them.
std::vector<at::Tensor> graph_leaves(const std::vector<at::Tensor>& outputs);

/// The same for the graph behind `roots`.
std::vector<at::Tensor> graph_leaves(const torch::autograd::edge_list& roots);

}  // namespace refrain::tape
