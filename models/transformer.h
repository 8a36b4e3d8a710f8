#pragma once

#include <optional>
#include <vector>

#include "models/zoo.h"
#include "refrain/sequential.h"

namespace refrain::models {

struct BlockOptions {
  int64_t width = 0;  ///< d_model; a multiple of `heads`
  int64_t heads = 4;
  bool causal = false;
  double dropout = 0.0;  ///< on both residual branches
};

/// Pre-norm transformer block: attention, then a GELU layer of four times the width.
/// With the defaults the same operators as the `Block` that `bench/peers` times under torch.utils.checkpoint.
class BlockImpl : public torch::nn::Module {
 public:
  explicit BlockImpl(const BlockOptions& options);
  /// @param per_layer  each linear and normalising layer in a region of its own, which saves next to nothing.
  torch::Tensor forward(torch::Tensor x, bool per_layer = false);

 private:
  torch::Tensor drop(const torch::Tensor& x) const;

  BlockOptions options_;
  torch::nn::LayerNorm n1_, n2_;
  torch::nn::Linear qkv_, o_, f1_, f2_;
};
TORCH_MODULE(Block);

/// Where a stack of blocks calls `refrain::checkpoint`: at most one of these.
struct StackStrategy {
  std::optional<CheckpointOptions> per_block = {};
  std::optional<Segments> segments = {};
  bool per_layer = false;
};

/// Byte or token language model: learned positions, causal blocks, output weights tied to the embedding.
class GptImpl : public torch::nn::Module {
 public:
  GptImpl(int64_t vocab, int64_t seq, int64_t depth, const BlockOptions& block);
  /// @param tokens  int64 [batch, <= seq].  @param strategy  where blocks are checkpointed.
  /// @return logits [batch, seq, vocab].
  torch::Tensor forward(const torch::Tensor& tokens, const StackStrategy& strategy = {});

 private:
  double dropout_;
  torch::nn::Embedding tokens_, positions_;
  torch::nn::LayerNorm norm_;
  torch::nn::ModuleList blocks_;
};
TORCH_MODULE(Gpt);

/// `gpt`, `gptsmall`. Loss: cross entropy of the next token.
std::unique_ptr<TrainableModel> make_gpt(const std::string& name, const ModelOptions& options);
/// `blocks`, `blocks-small`: the stack alone on a random input that requires a gradient. Loss: mean square of
/// the output.
std::unique_ptr<TrainableModel> make_blocks(const std::string& name, const ModelOptions& options);

}  // namespace refrain::models
