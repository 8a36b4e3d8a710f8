// Section 5: four ways to place regions: a block, a row of layers, part of a transformer block, residual blocks.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nn = torch::nn;

namespace {

/// One training step, the baseline's and checkpointed; whether the gradients are equal, and kept bytes fell by `at_least`.
bool compare(const char* name, nn::Module& model, const std::function<torch::Tensor()>& forward, double at_least) {
  struct Step {
    refrain::Bytes kept = 0, peak = 0;
    std::vector<torch::Tensor> gradients;
  };
  const auto run = [&] {
    model.zero_grad();
    Step step;
    {
      refrain::MemoryScope memory;
      auto loss = forward().square().mean();
      step.kept = memory.current();
      loss.backward();
      step.peak = memory.peak();
    }
    for (const auto& p : model.parameters()) step.gradients.push_back(p.grad());
    return step;
  };
  Step plain;
  {
    refrain::NoCheckpointGuard off;  // the same code with every `checkpoint` a pass-through
    plain = run();
  }
  const Step step = run();
  bool equal = true;
  for (size_t i = 0; i < plain.gradients.size(); ++i) {
    equal = equal && torch::equal(plain.gradients[i], step.gradients[i]);
  }
  const double less = 1 - static_cast<double>(step.kept) / static_cast<double>(plain.kept);
  std::printf("%-34s %10s %10s %10s %10s %7.1f%%   %s\n", name, refrain::format_bytes(plain.kept).c_str(),
              refrain::format_bytes(step.kept).c_str(), refrain::format_bytes(plain.peak).c_str(),
              refrain::format_bytes(step.peak).c_str(), 100 * less, equal ? "equal" : "DIFFERENT");
  return equal && less >= at_least;
}

// 5.1
nn::Sequential block(int64_t width) {
  return nn::Sequential(nn::Linear(width, width), nn::ReLU(), nn::Linear(width, width), nn::ReLU());
}

// 5.3: the feed-forward part makes tensors of four times the width, and is the part that is checkpointed.
struct TransformerBlock : nn::Module {
  explicit TransformerBlock(int64_t width)
      : attention(nn::MultiheadAttentionOptions(width, 8)),
        norm1(nn::LayerNormOptions({width})),
        norm2(nn::LayerNormOptions({width})),
        feed_forward(nn::Linear(width, 4 * width), nn::GELU(), nn::Linear(4 * width, width)) {
    register_module("attention", attention);
    register_module("norm1", norm1);
    register_module("norm2", norm2);
    register_module("feed_forward", feed_forward);
  }
  torch::Tensor forward(torch::Tensor x) {  // [length, batch, width]
    x = norm1->forward(x + std::get<0>(attention->forward(x, x, x)));
    return norm2->forward(x + refrain::checkpoint(feed_forward, x));  // or all of the block: checkpoint(block, x)
  }
  nn::MultiheadAttention attention;
  nn::LayerNorm norm1, norm2;
  nn::Sequential feed_forward;
};

// 5.4: BatchNorm in a region needs no care: operators are replayed, but not those that update statistics.
struct ResidualBlock : nn::Module {
  ResidualBlock(int64_t in, int64_t out, int64_t stride)
      : conv1(nn::Conv2dOptions(in, out, 3).stride(stride).padding(1).bias(false)),
        conv2(nn::Conv2dOptions(out, out, 3).padding(1).bias(false)),
        norm1(out),
        norm2(out) {
    register_module("conv1", conv1);
    register_module("norm1", norm1);
    register_module("conv2", conv2);
    register_module("norm2", norm2);
    if (stride != 1 || in != out) {
      shortcut->push_back(nn::Conv2d(nn::Conv2dOptions(in, out, 1).stride(stride).bias(false)));
      shortcut->push_back(nn::BatchNorm2d(out));
    }
    register_module("shortcut", shortcut);
  }
  torch::Tensor forward(const torch::Tensor& x) {
    auto y = norm2->forward(conv2->forward(norm1->forward(conv1->forward(x)).relu()));
    return (y + (shortcut->is_empty() ? x : shortcut->forward(x))).relu();
  }
  nn::Conv2d conv1, conv2;
  nn::BatchNorm2d norm1, norm2;
  nn::Sequential shortcut;
};

struct MiniResNet : nn::Module {
  MiniResNet(int64_t depth, int64_t width) : stem(nn::Conv2dOptions(3, width, 3).padding(1)), head(2 * width, 10) {
    register_module("stem", stem);
    register_module("head", head);
    for (int64_t i = 0; i < depth; ++i) {
      const auto in = i == 0 ? width : 2 * width;
      blocks.push_back(
          register_module("block" + std::to_string(i), std::make_shared<ResidualBlock>(in, 2 * width, i == 0 ? 2 : 1)));
    }
  }
  torch::Tensor forward(torch::Tensor x) {
    x = stem->forward(x).relu();
    for (const auto& each : blocks) x = refrain::checkpoint(each, x);
    return head->forward(x.mean({2, 3}));
  }
  nn::Conv2d stem;
  std::vector<std::shared_ptr<ResidualBlock>> blocks;
  nn::Linear head;
};

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";
  const int64_t width = full ? 1024 : 256;
  torch::manual_seed(0);
  std::printf("%-34s %21s %21s\n", "", "kept", "peak");
  std::printf("%-34s %10s %10s %10s %10s    less   gradients\n", "", "baseline", "regions", "baseline", "regions");

  auto first = block(width), second = block(width);
  nn::ModuleList both(first, second);
  auto x = torch::randn({512, width});
  bool ok = compare(
      "5.1 checkpoint(block, x)", *both, [&] { return refrain::checkpoint(second, first->forward(x)); }, 0.2);

  nn::Sequential layers;
  for (int i = 0; i < 16; ++i) {
    layers->push_back(nn::Linear(width, width));
    layers->push_back(nn::Tanh());
  }
  const auto segments = refrain::suggest_segments(static_cast<int64_t>(layers->size()));
  ok &= compare(
      "5.2 checkpoint_sequential(seq, 6)", *layers, [&] { return refrain::checkpoint_sequential(layers, segments, x); },
      0.4);

  nn::Sequential transformer;
  for (int i = 0; i < 4; ++i) transformer->push_back(TransformerBlock(full ? 512 : 128));
  auto text = torch::randn({64, 8, full ? 512 : 128});
  ok &= compare(
      "5.3 transformer, feed-forward only", *transformer, [&] { return transformer->forward(text); }, 0.2);

  MiniResNet resnet(8, full ? 64 : 16);
  auto images = torch::randn({full ? 32 : 16, 3, 32, 32});
  ok &= compare(
      "5.4 8 residual blocks, each", resnet, [&] { return resnet.forward(images); }, 0.5);

  if (!ok) std::printf("FAILED: gradients differ, or a pattern keeps more than it should\n");
  return ok ? 0 : 1;
}
