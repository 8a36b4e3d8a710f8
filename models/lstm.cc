#include "models/lstm.h"

#include <algorithm>
#include <tuple>

#include "models/base.h"

namespace refrain::models {
namespace nn = torch::nn;
namespace {

using State = std::tuple<torch::Tensor, torch::Tensor>;

torch::Tensor run_layer(nn::LSTMImpl& layer, const torch::Tensor& x,
                        const std::optional<CheckpointOptions>& per_chunk) {
  auto zeros = torch::zeros({1, x.size(0), layer.options.hidden_size()}, x.options());
  State state{zeros, zeros};
  std::vector<torch::Tensor> out;
  for (int64_t t = 0; t < x.size(1); t += kLstmChunk) {
    auto chunk = x.narrow(1, t, std::min(kLstmChunk, x.size(1) - t));
    auto [y, next] = checkpoint_if(
        per_chunk, [&layer](const torch::Tensor& in, const State& s) { return layer.forward(in, s); }, chunk, state);
    out.push_back(std::move(y));
    state = std::move(next);
  }
  return torch::cat(out, 1);
}

}  // namespace

LstmLanguageModelImpl::LstmLanguageModelImpl(int64_t vocab, int64_t hidden, int64_t depth)
    : tokens_(vocab, hidden), head_(hidden, vocab) {
  register_module("tokens", tokens_);
  register_module("layers", layers_);
  register_module("head", head_);
  for (int64_t i = 0; i < depth; ++i) layers_->push_back(nn::LSTM(nn::LSTMOptions(hidden, hidden).batch_first(true)));
}

torch::Tensor LstmLanguageModelImpl::forward(const torch::Tensor& tokens, LstmStrategy strategy,
                                             const CheckpointOptions& options) {
  const auto per_chunk = strategy == LstmStrategy::kPerBlock ? std::optional(options) : std::nullopt;
  std::optional<ModuleScope> scope(std::in_place, "tokens");
  auto x = tokens_->forward(tokens);
  for (size_t i = 0; i < layers_->size(); ++i) {
    scope.emplace("layers." + std::to_string(i));
    auto& lstm = *layers_[i]->as<nn::LSTM>();
    x = checkpoint_if(strategy == LstmStrategy::kPerLayer, run_layer, lstm, x, per_chunk);
  }
  scope.emplace("head");
  return head_->forward(x);
}

namespace {

class LstmModel final : public TextModel {
 public:
  LstmModel(const std::string& name, const ModelOptions& o)
      : TextModel(name, o, {"none", "per_layer", "per_block", "selective"}), net_(o.vocab, o.width, o.depth) {}

  torch::nn::Module& module() override { return *net_; }

 protected:
  torch::Tensor forward(const Batch& batch) override {
    const auto& per_block = block_options();
    const auto strategy = per_block                  ? LstmStrategy::kPerBlock
                          : strategy_is("per_layer") ? LstmStrategy::kPerLayer
                                                     : LstmStrategy::kNone;
    return net_->forward(batch.input, strategy, per_block.value_or(CheckpointOptions()));
  }

 private:
  LstmLanguageModel net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_lstm(const std::string& name, const ModelOptions& options) {
  return std::make_unique<LstmModel>(name, options);
}

}  // namespace refrain::models
