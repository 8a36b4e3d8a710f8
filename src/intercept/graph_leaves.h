#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <vector>

namespace refrain::tape {

/// Finds the leaves in which gradients of `outputs` would be accumulated, each once, in the order of a walk from the
/// outputs.
std::vector<at::Tensor> graph_leaves(const std::vector<at::Tensor>& outputs);

/// Finds the leaves of the graph behind `roots`.
std::vector<at::Tensor> graph_leaves(const torch::autograd::edge_list& roots);

}  // namespace refrain::tape
