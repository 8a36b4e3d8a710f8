#include "intercept/graph_leaves.h"

#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>

namespace refrain::tape {

std::vector<at::Tensor> graph_leaves(const std::vector<at::Tensor>& outputs) {
  torch::autograd::edge_list roots;
  for (const auto& output : outputs)
    if (output.defined() && output.requires_grad()) roots.push_back(torch::autograd::impl::gradient_edge(output));
  return graph_leaves(roots);
}

std::vector<at::Tensor> graph_leaves(const torch::autograd::edge_list& roots) {
  std::vector<at::Tensor> leaves;
  static std::atomic<size_t> last_size{0};  // most graphs are as large as the one before
  ska::flat_hash_set<const torch::autograd::Node*> seen;
  seen.reserve(last_size);
  std::vector<torch::autograd::Node*> todo;
  const auto reach = [&](torch::autograd::Node* node) {
    if (node && seen.insert(node).second) todo.push_back(node);
  };
  for (const auto& root : roots) reach(root.function.get());
  while (!todo.empty()) {
    auto* node = todo.back();
    todo.pop_back();
    const auto& edges = node->next_edges();
    for (const auto& edge : edges) reach(edge.function.get());
    if (!edges.empty()) continue;
    if (auto* leaf = dynamic_cast<torch::autograd::AccumulateGrad*>(node)) leaves.push_back(leaf->variable);
  }
  last_size = seen.size();
  return leaves;
}

}  // namespace refrain::tape
