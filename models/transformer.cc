#include "models/transformer.h"

#include "models/base.h"
#include "refrain/error.h"

namespace refrain::models {
namespace nn = torch::nn;

BlockImpl::BlockImpl(const BlockOptions& options)
    : options_(options),
      n1_(nn::LayerNormOptions({options.width})),
      n2_(nn::LayerNormOptions({options.width})),
      qkv_(options.width, 3 * options.width),
      o_(options.width, options.width),
      f1_(options.width, 4 * options.width),
      f2_(4 * options.width, options.width) {
  register_module("n1", n1_);
  register_module("n2", n2_);
  register_module("qkv", qkv_);
  register_module("o", o_);
  register_module("f1", f1_);
  register_module("f2", f2_);
}

torch::Tensor BlockImpl::drop(const torch::Tensor& x) const {
  return options_.dropout > 0 ? torch::dropout(x, options_.dropout, is_training()) : x;
}

torch::Tensor BlockImpl::forward(torch::Tensor x, bool per_layer) {
  const auto run = [&](auto& layer, const torch::Tensor& y) { return checkpoint_if(per_layer, layer, y); };
  const int64_t b = x.size(0), s = x.size(1), d = x.size(2);
  std::optional<ModuleScope> scope(std::in_place, "attention");
  auto y = run(qkv_, run(n1_, x)).view({b, s, 3, options_.heads, d / options_.heads}).permute({2, 0, 3, 1, 4});
  auto a = torch::scaled_dot_product_attention(y[0], y[1], y[2], {}, 0.0, options_.causal);
  x = x + drop(run(o_, a.transpose(1, 2).reshape({b, s, d})));
  scope.emplace("mlp");
  return x + drop(run(f2_, torch::gelu(run(f1_, run(n2_, x)))));
}

GptImpl::GptImpl(int64_t vocab, int64_t seq, int64_t depth, const BlockOptions& block)
    : dropout_(block.dropout),
      tokens_(vocab, block.width),
      positions_(seq, block.width),
      norm_(nn::LayerNormOptions({block.width})) {
  register_module("tokens", tokens_);
  register_module("positions", positions_);
  register_module("blocks", blocks_);
  register_module("norm", norm_);
  for (int64_t i = 0; i < depth; ++i) blocks_->push_back(Block(block));
  torch::NoGradGuard no_grad;
  // With tied weights the usual N(0, 1) embedding would give logits of standard deviation sqrt(width).
  tokens_->weight.normal_(0.0, 0.02);
  positions_->weight.normal_(0.0, 0.02);
}

namespace {

/// @param prefix  of the blocks' module scopes.
torch::Tensor run_stack(const nn::ModuleList& blocks, const std::string& prefix, const StackStrategy& strategy,
                        torch::Tensor x) {
  std::vector<Layer> row;
  for (size_t i = 0; i < blocks->size(); ++i) {
    row.push_back([name = prefix + std::to_string(i), block = blocks->ptr<BlockImpl>(i), &strategy](torch::Tensor y) {
      ModuleScope scope(name);
      if (strategy.per_layer) return block->forward(y, true);
      return checkpoint_if(strategy.per_block, block, y);
    });
  }
  return run_row(row, strategy.segments, std::move(x));
}

}  // namespace

torch::Tensor GptImpl::forward(const torch::Tensor& tokens, const StackStrategy& strategy) {
  std::optional<ModuleScope> scope(std::in_place, "tokens");
  auto positions = torch::arange(tokens.size(1), tokens.options());
  auto x = tokens_->forward(tokens) + positions_->forward(positions);
  if (dropout_ > 0) x = torch::dropout(x, dropout_, is_training());
  scope.reset();
  x = run_stack(blocks_, "blocks.", strategy, std::move(x));
  scope.emplace("head");
  return torch::linear(norm_->forward(x), tokens_->weight);
}

namespace {

constexpr int64_t kHeads = 4;

void check_width(const std::string& name, const ModelOptions& options) {
  if (options.width % kHeads != 0) {
    throw InvalidArgument("width " + std::to_string(options.width) + " for model " + name +
                          ": expected a multiple of " + std::to_string(kHeads) + " (its attention heads)");
  }
}

class GptModel final : public TextModel {
 public:
  GptModel(const std::string& name, const ModelOptions& o)
      : TextModel(name, o, {"none", "per_block", "selective"}), net_(o.vocab, o.seq, o.depth, block_of(o)) {}

  torch::nn::Module& module() override { return *net_; }

  int64_t row_length() const override { return options().depth; }

 protected:
  torch::Tensor forward(const Batch& batch) override {
    return net_->forward(batch.input, {block_options(), segments(), strategy_is("per_layer")});
  }

 private:
  static BlockOptions block_of(const ModelOptions& o) {
    return {.width = o.width, .heads = kHeads, .causal = true, .dropout = o.dropout};
  }
  Gpt net_;
};

class BlocksModel final : public ModelBase {
 public:
  BlocksModel(const std::string& name, const ModelOptions& o) : ModelBase(name, o, {"none", "per_block", "selective"}) {
    for (int64_t i = 0; i < o.depth; ++i) stack_->push_back(Block(BlockOptions{.width = o.width, .heads = kHeads}));
  }

  torch::nn::Module& module() override { return *stack_; }

  int64_t row_length() const override { return options().depth; }

  Batch synthetic_batch(uint64_t seed) override {
    return {torch::randn({options().batch, options().seq, options().width}, own_generator(seed)), {}};
  }

  std::string unit() const override { return "tokens"; }
  int64_t units_per_batch() const override { return options().batch * options().seq; }

 protected:
  torch::Tensor forward(const Batch& batch) override {
    return run_stack(stack_, "", {block_options(), segments(), strategy_is("per_layer")},
                     batch.input.clone().requires_grad_());
  }
  torch::Tensor criterion(const torch::Tensor& output, const Batch&) const override { return output.pow(2).mean(); }

 private:
  nn::ModuleList stack_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_gpt(const std::string& name, const ModelOptions& options) {
  check_width(name, options);
  return std::make_unique<GptModel>(name, options);
}

std::unique_ptr<TrainableModel> make_blocks(const std::string& name, const ModelOptions& options) {
  check_width(name, options);
  return std::make_unique<BlocksModel>(name, options);
}

}  // namespace refrain::models
