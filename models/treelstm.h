#pragma once

#include <utility>

#include "models/zoo.h"
#include "refrain/checkpoint.h"

namespace refrain::models {

/// Binary TreeLSTM that classifies trees of tokens: another program for each example, of small operators.
/// Source: Tai et al., "Improved Semantic Representations From Tree-Structured Long Short-Term Memory Networks", ACL 2015.
class TreeLstmImpl : public torch::nn::Module {
 public:
  TreeLstmImpl(int64_t vocab, int64_t width, int64_t classes);
  /// @param trees  int64 [batch, 2 leaves - 1], each row a tree in postfix order: a token pushes a leaf, `kJoin` joins the
  ///               last two.
  /// @param per_tree  each tree in a region of its own, with these options.
  /// @return logits [batch, classes].
  torch::Tensor forward(const torch::Tensor& trees, const std::optional<CheckpointOptions>& per_tree = {});

  static constexpr int64_t kJoin = -1;

 private:
  using State = std::pair<torch::Tensor, torch::Tensor>;  ///< hidden, cell: [1, width]
  State leaf(const torch::Tensor& x);
  State join(const State& left, const State& right);
  torch::Tensor root(const std::vector<int64_t>& tree);

  torch::nn::Embedding tokens_;
  torch::nn::Linear leaf_, join_, head_;
};
TORCH_MODULE(TreeLstm);

/// `treelstm`: trees of `seq` leaves, each example of a random shape. Loss: cross entropy.
std::unique_ptr<TrainableModel> make_treelstm(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
