#include "models/ragged_lstm.h"

#include <tuple>

#include "models/base.h"

namespace refrain::models {
namespace nn = torch::nn;
namespace {

constexpr int64_t kNoTarget = -100;  ///< what cross entropy passes over

torch::Tensor run_layer(nn::LSTMImpl& layer, const torch::Tensor& x, const torch::Tensor& lengths) {
  const auto packed = nn::utils::rnn::pack_padded_sequence(x, lengths, /*batch_first=*/true, /*enforce_sorted=*/false);
  const auto out = std::get<0>(layer.forward_with_packed_input(packed));
  return std::get<0>(nn::utils::rnn::pad_packed_sequence(out, /*batch_first=*/true, /*padding_value=*/0.0, x.size(1)));
}

}  // namespace

RaggedLstmImpl::RaggedLstmImpl(int64_t vocab, int64_t hidden, int64_t depth)
    : tokens_(vocab, hidden), head_(hidden, vocab) {
  register_module("tokens", tokens_);
  register_module("layers", layers_);
  register_module("head", head_);
  for (int64_t i = 0; i < depth; ++i) layers_->push_back(nn::LSTM(nn::LSTMOptions(hidden, hidden).batch_first(true)));
}

torch::Tensor RaggedLstmImpl::forward(const torch::Tensor& tokens, const torch::Tensor& lengths,
                                      const std::optional<CheckpointOptions>& per_layer) {
  std::optional<ModuleScope> scope(std::in_place, "tokens");
  auto x = tokens_->forward(tokens);
  for (size_t i = 0; i < layers_->size(); ++i) {
    scope.emplace("layers." + std::to_string(i));
    x = checkpoint_if(per_layer, run_layer, *layers_[i]->as<nn::LSTM>(), x, lengths);
  }
  scope.emplace("head");
  return head_->forward(x);
}

namespace {

class RaggedLstmModel final : public TextModel {
 public:
  RaggedLstmModel(const std::string& name, const ModelOptions& o)
      : TextModel(name, o, {"none", "per_block", "selective"}), net_(o.vocab, o.width, o.depth) {}

  torch::nn::Module& module() override { return *net_; }

  Batch synthetic_batch(uint64_t seed) override {
    auto batch = TextModel::synthetic_batch(seed);
    const int64_t longest = options().seq;
    const auto lengths =
        torch::randint((longest + 1) / 2, longest + 1, {options().batch, 1}, own_generator(~seed), torch::kLong);
    batch.target.masked_fill_(torch::arange(longest) >= lengths, kNoTarget);
    return batch;
  }

 protected:
  torch::Tensor forward(const Batch& batch) override {
    const auto lengths = (batch.target != kNoTarget).sum(1).cpu();
    return net_->forward(batch.input, lengths, block_options());
  }

 private:
  RaggedLstm net_;
};

}  // namespace

std::unique_ptr<TrainableModel> make_ragged_lstm(const std::string& name, const ModelOptions& options) {
  return std::make_unique<RaggedLstmModel>(name, options);
}

}  // namespace refrain::models
