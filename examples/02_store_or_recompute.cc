// Section 2: what backward needs of forward, and what it costs to recompute it instead of keeping it.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <vector>

namespace {

// 2.1: y = W2 relu(W1 x). ReLU's gradient asks where x > 0, which its own result says as well as z1: autograd keeps a1.
bool what_is_stored() {
  auto w1 = torch::randn({4, 4}).requires_grad_();
  auto w2 = torch::randn({4, 4}).requires_grad_();
  auto x = torch::randn({1, 4});
  const auto report = refrain::saved_tensors([&] {
    auto z1 = x.mm(w1.t());
    auto a1 = z1.relu();
    return a1.mm(w2.t());
  });
  std::cout << "2.1  Saved for the backward of y = W2 relu(W1 x):\n" << report.text() << "\n";
  return report.kept_bytes == 4 * 4;  // a1 alone: W2 and x are alive anyway
}

// 2.2: a row of `kDepth` layers in s segments keeps s boundaries, and in backward the inside of one segment at a time.
bool segments() {
  constexpr int64_t kDepth = 100, kHidden = 64, kBatch = 1024;
  constexpr double kActivation = kHidden * kBatch * 4;
  std::vector<torch::nn::Sequential> layers;
  for (int64_t i = 0; i < kDepth; ++i) {
    layers.push_back(torch::nn::Sequential(torch::nn::Linear(kHidden, kHidden), torch::nn::ReLU()));
  }
  const auto x = torch::randn({kBatch, kHidden});

  // One region around all counts the operators of a forward.
  const auto before = refrain::tape_stats().recorded_ops;
  refrain::checkpoint_sequential(layers, refrain::Segments::even(1).checkpoint_last(true), x);
  const auto forward_ops = refrain::tape_stats().recorded_ops - before;

  std::printf("2.2  %ld layers; memory in activations of %.0f KiB\n", kDepth, kActivation / 1024);
  std::printf("     segments   kept   peak   recomputed, in forwards\n");
  std::map<int64_t, double> peaks;
  double most_recomputed = 0;
  for (const int64_t count : {1, 2, 5, 10, 20, 50, 100}) {
    const auto replayed = refrain::tape_stats().replayed_ops;
    refrain::MemoryScope memory;
    auto y = refrain::checkpoint_sequential(layers, count, x);  // 1: a single piece, and the last piece is no region
    const double kept = static_cast<double>(memory.current()) / kActivation;
    y.sum().backward();
    peaks[count] = static_cast<double>(memory.peak()) / kActivation;
    const auto again =
        static_cast<double>(refrain::tape_stats().replayed_ops - replayed) / static_cast<double>(forward_ops);
    most_recomputed = std::max(most_recomputed, again);
    std::printf("     %8ld %6.1f %6.1f %16.2f%s\n", count, kept, peaks[count], again,
                count == refrain::suggest_segments(kDepth) ? "   <- sqrt(n)" : "");
    for (auto& layer : layers) layer->zero_grad();
  }
  const auto best = std::min_element(peaks.begin(), peaks.end(), [](auto& a, auto& b) { return a.second < b.second; });
  std::printf("  Lowest peak at %ld segments: %.1f times lower than the baseline's.\n", best->first,
              peaks[1] / best->second);
  return best->first == refrain::suggest_segments(kDepth) && peaks[1] > 4 * best->second && most_recomputed <= 1;
}

}  // namespace

int main() {
  torch::manual_seed(42);
  const bool stored = what_is_stored();
  const bool least = segments();
  if (!stored) std::printf("FAILED: more than a1 is kept\n");
  if (!least)
    std::printf("FAILED: sqrt(n) segments do not have the lowest peak, or more than one forward was recomputed\n");
  return stored && least ? 0 : 1;
}
