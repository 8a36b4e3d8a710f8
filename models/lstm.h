#pragma once

#include "models/zoo.h"
#include "refrain/checkpoint.h"

namespace refrain::models {

/// Where the LSTM calls `refrain::checkpoint`.
enum class LstmStrategy {
  kNone,
  kPerLayer,  ///< each layer over the whole sequence
  kPerBlock,  ///< each layer over each chunk of `kLstmChunk` steps
};

inline constexpr int64_t kLstmChunk = 16;

/// Byte or token language model of stacked LSTM layers. All strategies run the sequence in the same chunks and carry
/// the state across, so that gradients of the weights are summed in the same order.
class LstmLanguageModelImpl : public torch::nn::Module {
 public:
  LstmLanguageModelImpl(int64_t vocab, int64_t hidden, int64_t depth);
  /// @param tokens  int64 [batch, seq].  @param options  of the regions of `kPerBlock`.
  /// @return logits [batch, seq, vocab].
  torch::Tensor forward(const torch::Tensor& tokens, LstmStrategy strategy = LstmStrategy::kNone,
                        const CheckpointOptions& options = {});

 private:
  torch::nn::Embedding tokens_;
  torch::nn::ModuleList layers_;
  torch::nn::Linear head_;
};
TORCH_MODULE(LstmLanguageModel);

/// Loss: cross entropy of the next token.
std::unique_ptr<TrainableModel> make_lstm(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
