#include "models/treelstm.h"

#include <string>
#include <vector>

#include "models/base.h"

namespace refrain::models {

TreeLstmImpl::TreeLstmImpl(int64_t vocab, int64_t width, int64_t classes)
    : tokens_(vocab, width), leaf_(width, 3 * width), join_(2 * width, 5 * width), head_(width, classes) {
  register_module("tokens", tokens_);
  register_module("leaf", leaf_);
  register_module("join", join_);
  register_module("head", head_);
}

TreeLstmImpl::State TreeLstmImpl::leaf(const torch::Tensor& x) {
  const auto gates = leaf_->forward(x).chunk(3, 1);  // input, output, update
  auto cell = gates[0].sigmoid() * gates[2].tanh();
  return {gates[1].sigmoid() * cell.tanh(), cell};
}

TreeLstmImpl::State TreeLstmImpl::join(const State& left, const State& right) {
  // input, two forget, output, update
  const auto gates = join_->forward(torch::cat({left.first, right.first}, 1)).chunk(5, 1);
  auto cell =
      gates[0].sigmoid() * gates[4].tanh() + gates[1].sigmoid() * left.second + gates[2].sigmoid() * right.second;
  return {gates[3].sigmoid() * cell.tanh(), cell};
}

torch::Tensor TreeLstmImpl::root(const std::vector<int64_t>& tree) {
  std::vector<State> stack;
  for (const int64_t token : tree) {
    if (token != kJoin) {
      stack.push_back(leaf(tokens_->forward(torch::full({1}, token, torch::kLong))));
      continue;
    }
    const auto right = std::move(stack.back());
    stack.pop_back();
    stack.back() = join(stack.back(), right);
  }
  return stack.back().first;
}

torch::Tensor TreeLstmImpl::forward(const torch::Tensor& trees, const std::optional<CheckpointOptions>& per_tree) {
  const auto rows = trees.contiguous();
  const auto* next = rows.const_data_ptr<int64_t>();
  std::vector<torch::Tensor> roots;
  for (int64_t i = 0; i < rows.size(0); ++i, next += rows.size(1)) {
    ModuleScope scope("trees." + std::to_string(i));
    const std::vector<int64_t> tree(next, next + rows.size(1));
    roots.push_back(checkpoint_if(per_tree, &TreeLstmImpl::root, this, tree));
  }
  ModuleScope scope("head");
  return head_->forward(torch::cat(roots));
}

namespace {

class TreeLstmModel final : public ModelBase {
 public:
  TreeLstmModel(const std::string& name, const ModelOptions& o)
      : ModelBase(name, o, {"none", "per_block", "selective"}), net_(o.vocab, o.width, o.classes) {}

  torch::nn::Module& module() override { return *net_; }

  Batch synthetic_batch(uint64_t seed) override {
    auto generator = own_generator(seed);
    const int64_t batch = options().batch, leaves = options().seq;
    const auto tokens = torch::randint(options().vocab, {batch, leaves}, generator, torch::kLong);
    const auto joins = torch::rand({batch, 2 * leaves}, generator);
    auto trees = torch::empty({batch, 2 * leaves - 1}, torch::kLong);
    for (int64_t row = 0; row < batch; ++row) {
      const auto* token = tokens[row].const_data_ptr<int64_t>();
      const auto* coin = joins[row].const_data_ptr<float>();
      auto* out = trees[row].mutable_data_ptr<int64_t>();
      int64_t pushed = 0, on_stack = 0;
      for (int64_t i = 0; i < trees.size(1); ++i) {
        const bool can_join = on_stack >= 2, can_push = pushed < leaves;
        if (can_join && (!can_push || coin[i] < 0.5F)) {
          out[i] = TreeLstmImpl::kJoin;
          --on_stack;
        } else {
          out[i] = token[pushed++];
          ++on_stack;
        }
      }
    }
    return {trees, torch::randint(options().classes, {batch}, generator, torch::kLong)};
  }
  std::string unit() const override { return "trees"; }
  int64_t units_per_batch() const override { return options().batch; }

 protected:
  torch::Tensor forward(const Batch& batch) override { return net_->forward(batch.input, block_options()); }
  torch::Tensor criterion(const torch::Tensor& logits, const Batch& batch) const override {
    return torch::cross_entropy_loss(logits, batch.target);
  }

 private:
  TreeLstm net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_treelstm(const std::string& name, const ModelOptions& options) {
  return std::make_unique<TreeLstmModel>(name, options);
}

}  // namespace refrain::models
