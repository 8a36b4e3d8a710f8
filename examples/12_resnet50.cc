// Section 12: ResNet-50 with four strategies, the largest batch of each, and a training loop.
//
// The model with its strategies is models/resnet.cc: `ResNetImpl::forward` shows where regions go.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "models/resnet.h"

namespace nn = torch::nn;
using refrain::models::ResNet;
using refrain::models::ResNetStrategy;

namespace {

struct Strategy {
  const char* name;
  ResNetStrategy where;
};
constexpr Strategy kStrategies[] = {{"none", ResNetStrategy::kNone},
                                    {"aggressive", ResNetStrategy::kAggressive},
                                    {"per_stage", ResNetStrategy::kPerStage},
                                    {"per_block", ResNetStrategy::kPerBlock}};

ResNet make_resnet50(int64_t classes) {
  return ResNet(std::array<int64_t, 4>{3, 4, 6, 3}, /*bottleneck=*/true, classes);
}

struct Images {
  Images(int64_t batch, int64_t size, int64_t classes)
      : x(torch::randn({batch, 3, size, size})), target(torch::randint(classes, {batch}, torch::kLong)) {}
  torch::Tensor x, target;
};

/// One forward and backward; bytes at the peak over gradients, parameters and what else was there before.
refrain::Bytes step(ResNet& net, const Images& images, ResNetStrategy where) {
  net->zero_grad(/*set_to_none=*/false);
  refrain::MemoryScope memory;
  torch::cross_entropy_loss(net->forward(images.x, where), images.target).backward();
  return memory.peak();
}

// 12.1
void architecture(const ResNet& net) {
  std::printf("12.1  ");
  for (const auto& child : net->named_children()) {
    std::printf("%s: %zu, ", child.key().c_str(), child.value()->children().size());
  }
  int64_t count = 0;
  for (const auto& p : net->parameters()) count += p.numel();
  std::printf("%ld parameters\n", count);
}

// 12.2 and 12.3
bool strategies(ResNet& net, int64_t batch, int64_t size, int rounds) {
  const Images images(batch, size, 1000);
  std::printf("12.3  batch %ld, %ld x %ld\n  %-12s %12s %10s %9s   gradients\n", batch, size, size, "", "peak", "less",
              "ms");
  step(net, images, ResNetStrategy::kNone);  // makes the gradients
  std::vector<torch::Tensor> expected;
  refrain::Bytes plain = 0, per_block = 0;
  bool equal = true;
  for (const auto& strategy : kStrategies) {
    refrain::Bytes peak = 0;
    std::vector<double> ms;
    for (int i = 0; i < rounds; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      peak = step(net, images, strategy.where);
      ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
    std::sort(ms.begin(), ms.end());
    bool same = true;
    for (size_t i = 0; i < net->parameters().size(); ++i) {
      const auto gradient = net->parameters()[i].grad();
      if (strategy.where == ResNetStrategy::kNone) {
        expected.push_back(gradient.clone());
      } else {
        same = same && torch::equal(gradient, expected[i]);
      }
    }
    if (strategy.where == ResNetStrategy::kNone) plain = peak;
    if (strategy.where == ResNetStrategy::kPerBlock) per_block = peak;
    equal = equal && same;
    std::printf("  %-12s %12s %9.1f%% %9.1f   %s\n", strategy.name, refrain::format_bytes(peak).c_str(),
                100 - 100.0 * static_cast<double>(peak) / static_cast<double>(plain), ms[ms.size() / 2],
                same ? "equal" : "DIFFERENT");
  }
  // BatchNorm counts forwards: a strategy that ran one again would have counted it twice.
  const auto forwards = net->named_buffers()["stem.1.num_batches_tracked"].item<int64_t>();
  std::printf("  BatchNorm saw %ld batches in %d steps\n", forwards, 1 + 4 * rounds);
  return equal && 10 * per_block < 6 * plain && forwards == 1 + 4 * rounds;
}

// 12.4: the peak is nearly a straight line over the batch: two steps give it, and trials near its end the exact answer.
bool largest_batches(ResNet& net, int64_t size, refrain::Bytes for_activations) {
  const auto limit = refrain::memory_stats().current + for_activations;
  std::printf("12.4  %ld x %ld, %s for activations, input and temporaries\n", size, size,
              refrain::format_bytes(for_activations).c_str());
  const auto before = refrain::memory_stats().current;
  bool left_nothing = true;
  int64_t plain = 0, best = 0;
  for (const auto& strategy : kStrategies) {
    const auto fits = [&](int64_t batch) {
      refrain::MemoryLimit while_trying(limit);
      try {
        step(net, Images(batch, size, 1000), strategy.where);
        return true;
      } catch (const c10::OutOfMemoryError&) {
      }
      left_nothing = left_nothing && refrain::memory_stats().current == before;
      return false;
    };
    const auto at2 = step(net, Images(2, size, 1000), strategy.where);
    const auto at6 = step(net, Images(6, size, 1000), strategy.where);
    const auto each = (at6 - at2) / 4 + 3 * size * size * int64_t{sizeof(float)};
    auto batch = std::max<int64_t>(2, 2 + (for_activations - at2) / each);
    while (batch > 2 && !fits(batch)) --batch;
    while (fits(batch + 1)) ++batch;
    if (strategy.where == ResNetStrategy::kNone) plain = batch;
    best = std::max(best, batch);
    std::printf("  %-12s largest batch %3ld, %.2f times\n", strategy.name, batch,
                static_cast<double>(batch) / static_cast<double>(plain));
  }
  std::printf("  trials that ran out left %s behind\n", left_nothing ? "nothing" : "MEMORY");
  return 2 * best >= 3 * plain && left_nothing;
}

// 12.5: data, shuffling, AdamW, bfloat16 if asked; loss and peak of each epoch, model and optimizer included.
bool train(int64_t samples, int64_t batch, int64_t size, int epochs, bool bfloat16) {
  const auto before = refrain::memory_stats().current;
  auto net = make_resnet50(10);
  const Images data(samples, size, 10);
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(1e-3));
  std::printf("12.5  aggressive, batch %ld, %s\n", batch, bfloat16 ? "bfloat16 autocast" : "float32");
  double first = 0, mean = 0;
  for (int epoch = 1; epoch <= epochs; ++epoch) {
    refrain::reset_peak_memory();
    mean = 0;
    for (const auto& indices : torch::randperm(samples).split(batch)) {
      optimizer.zero_grad();
      std::optional<refrain::AutocastScope> autocast;
      if (bfloat16) autocast.emplace(torch::kCPU, torch::kBFloat16);
      auto logits = net->forward(data.x.index_select(0, indices), ResNetStrategy::kAggressive);
      auto loss = torch::cross_entropy_loss(logits, data.target.index_select(0, indices));
      autocast.reset();
      loss.backward();
      optimizer.step();
      mean += loss.item<double>() * static_cast<double>(batch) / static_cast<double>(samples);
    }
    if (epoch == 1) first = mean;
    std::printf("  epoch %d of %d: loss %.4f, peak %s\n", epoch, epochs, mean,
                refrain::format_bytes(refrain::memory_stats().peak - before).c_str());
  }
  return mean < first;
}

// 12.6: a model that knows nothing of checkpointing; its stages are rows of blocks, cut into segments from outside.
bool from_outside(ResNet& net, int64_t batch, int64_t size) {
  const Images images(batch, size, 1000);
  const auto peak_of = [&](int64_t segments) {
    net->zero_grad(/*set_to_none=*/false);
    refrain::MemoryScope memory;
    auto x = images.x;
    for (const auto& child : net->named_children()) {
      nn::Sequential part(std::dynamic_pointer_cast<nn::SequentialImpl>(child.value()));
      const bool is_stage = child.key().starts_with("layer");
      const auto count = std::min(segments, static_cast<int64_t>(part->size()));
      x = is_stage && segments > 0 ? refrain::checkpoint_sequential(part, count, x) : part->forward(x);
    }
    torch::cross_entropy_loss(x, images.target).backward();
    return memory.peak();
  };
  const auto plain = peak_of(0), four = peak_of(4);
  std::printf("12.6  stages in 4 segments each: peak %s, baseline %s\n", refrain::format_bytes(four).c_str(),
              refrain::format_bytes(plain).c_str());
  return four < plain;
}

}  // namespace

int main(int argc, char** argv) {
  const auto has = [&](std::string_view flag) { return std::find(argv + 1, argv + argc, flag) != argv + argc; };
  const bool full = has("--full");  // the notebook's sizes: 10 GB, minutes
  torch::manual_seed(0);
  refrain::install_memory_tracking();
  auto net = make_resnet50(1000);
  architecture(net);
  const bool saves = full ? strategies(net, 32, 224, 5) : strategies(net, 8, 64, 1);
  const bool grows = full ? largest_batches(net, 224, refrain::Bytes{4} << 30) : largest_batches(net, 32, 24 << 20);
  const bool outside = full ? from_outside(net, 32, 224) : from_outside(net, 4, 64);
  const bool learns = full ? train(256, 32, 224, 3, has("--bfloat16")) : train(16, 8, 32, 3, has("--bfloat16"));
  if (!saves) std::printf("FAILED: gradients or BatchNorm differ, or per_block saves less than 40%%\n");
  if (!grows) std::printf("FAILED: the batch does not grow by half, or a trial left memory behind\n");
  if (!outside) std::printf("FAILED: segments of the stages save nothing\n");
  if (!learns) std::printf("FAILED: the loss does not fall\n");
  return saves && grows && outside && learns ? 0 : 1;
}
