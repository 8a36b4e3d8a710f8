#include "tape/graph_leaves.h"

#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <unordered_set>

namespace refrain::tape {

std::vector<at::Tensor> graph_leaves(const std::vector<at::Tensor>& outputs) {
  torch::autograd::edge_list roots;
  for (const auto& output : outputs)
    if (output.defined() && output.requires_grad()) roots.push_back(torch::autograd::impl::gradient_edge(output));
  return graph_leaves(roots);
}

std::vector<at::Tensor> graph_leaves(const torch::autograd::edge_list& roots) {
  std::vector<at::Tensor> leaves;
  std::unordered_set<const torch::autograd::Node*> seen;
  std::vector<torch::autograd::Node*> todo;
  const auto reach = [&](torch::autograd::Node* node) {
    if (node && seen.insert(node).second) todo.push_back(node);
  };
  for (const auto& root : roots) reach(root.function.get());
  while (!todo.empty()) {
    auto* node = todo.back();
    todo.pop_back();
    if (auto* leaf = dynamic_cast<torch::autograd::AccumulateGrad*>(node)) leaves.push_back(leaf->variable);
    for (const auto& edge : node->next_edges()) reach(edge.function.get());
  }
  return leaves;
}

}  // namespace refrain::tape
