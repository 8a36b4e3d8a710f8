#pragma once

#include "models/zoo.h"
#include "refrain/checkpoint.h"

namespace refrain::models {

/// Language model over texts of different lengths: LSTM layers over packed sequences, which LibTorch computes step by step
/// on the examples that are long enough.
class RaggedLstmImpl : public torch::nn::Module {
 public:
  RaggedLstmImpl(int64_t vocab, int64_t hidden, int64_t depth);
  /// @param tokens  int64 [batch, longest].  @param lengths  int64 [batch] on the CPU, 1 to longest.
  /// @param per_layer  each layer in a region of its own, with these options.
  /// @return logits [batch, longest, vocab]; what lies behind an example's length says nothing.
  torch::Tensor forward(const torch::Tensor& tokens, const torch::Tensor& lengths,
                        const std::optional<CheckpointOptions>& per_layer = {});

 private:
  torch::nn::Embedding tokens_;
  torch::nn::ModuleList layers_;
  torch::nn::Linear head_;
};
TORCH_MODULE(RaggedLstm);

/// `lstm-ragged`: lengths from half of `seq` to `seq`. Targets behind an example's end are -100. Loss: cross entropy of the
/// next token.
std::unique_ptr<TrainableModel> make_ragged_lstm(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
