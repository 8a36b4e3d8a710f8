// Section 11: a memory budget for a row of transformer blocks.
//
// torch.compile is Python's. Here policies are the points on the curve between keeping everything and recomputing
// everything, and one forward shows what each of them keeps.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string_view>
#include <vector>

namespace nn = torch::nn;

namespace {

struct TransformerBlockImpl : nn::Module {
  TransformerBlockImpl(int64_t width, int64_t num_heads)
      : heads(num_heads),
        n1(nn::LayerNormOptions({width})),
        n2(nn::LayerNormOptions({width})),
        qkv(width, 3 * width),
        out(width, width),
        up(width, 4 * width),
        down(4 * width, width) {
    register_module("n1", n1);
    register_module("n2", n2);
    register_module("qkv", qkv);
    register_module("out", out);
    register_module("up", up);
    register_module("down", down);
  }
  torch::Tensor forward(const torch::Tensor& x) {
    const auto b = x.size(0), s = x.size(1), d = x.size(2);
    auto p = qkv->forward(n1->forward(x)).view({b, s, 3, heads, d / heads}).permute({2, 0, 3, 1, 4});
    auto a = torch::scaled_dot_product_attention(p[0], p[1], p[2]).transpose(1, 2).reshape({b, s, d});
    auto h = x + out->forward(a);
    return h + down->forward(torch::gelu(up->forward(n2->forward(h))));
  }
  int64_t heads;
  nn::LayerNorm n1, n2;
  nn::Linear qkv, out, up, down;
};
TORCH_MODULE(TransformerBlock);

struct Point {
  const char* keeps;
  std::optional<refrain::Policy> policy;  ///< none: no region
  refrain::Bytes kept = 0, peak = 0;
  int64_t replayed = 0;
  std::vector<double> ms = {};
};

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";
  const int64_t width = full ? 1024 : 128, batch = full ? 32 : 8, length = full ? 256 : 128;
  torch::manual_seed(0);
  std::vector<TransformerBlock> blocks;
  for (int i = 0; i < (full ? 1 : 4); ++i) blocks.emplace_back(width, 8);
  const auto x = torch::randn({batch, length, width});
  const auto attention = refrain::save_ops({"aten::_scaled_dot_product_flash_attention_for_cpu"});

  const refrain::Policy narrow_products = [&](const refrain::OpContext& op) {
    const auto widest = batch * length * 4 * width * int64_t{sizeof(float)};
    return op.name().ends_with("mm") && op.output_bytes() < widest ? refrain::CheckpointPolicy::kMustSave
                                                                   : refrain::CheckpointPolicy::kPreferRecompute;
  };

  std::vector<Point> points = {
      {"everything (no region)", std::nullopt},
      {"products and attention", refrain::save_compute_intensive()},
      {"attention, every second product", refrain::and_then(attention, refrain::save_every_second_matmul())},
      {"attention, all but widest products", refrain::and_then(attention, narrow_products)},
      {"attention", attention},
      {"nothing", refrain::nothing_saveable()},
  };
  const auto run = [&](const Point& point) {
    auto y = x;
    for (auto& block : blocks) {
      y = point.policy ? refrain::checkpoint(refrain::CheckpointOptions().policy(*point.policy), block, y)
                       : block->forward(y);
    }
    return y;
  };
  const auto recorded = refrain::tape_stats().recorded_ops;
  run(points.back());
  const auto operators = refrain::tape_stats().recorded_ops - recorded;

  for (auto& point : points) point.kept = refrain::saved_tensors([&] { return run(point); }).kept_bytes;
  for (int i = 0; i < (full ? 1 : 5); ++i) {
    for (auto& point : points) {
      for (auto& block : blocks) block->zero_grad();
      const auto replayed = refrain::tape_stats().replayed_ops;
      const auto begin = std::chrono::steady_clock::now();
      refrain::MemoryScope memory;
      run(point).sum().backward();
      point.ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
      point.peak = memory.peak();
      point.replayed = refrain::tape_stats().replayed_ops - replayed;
    }
  }

  // 11.1, 11.2: only what backward needs is recomputed: never the last product, whose result nothing saved.
  std::printf("11.2  transformer blocks: %zu, width %ld, batch %ld, length %ld: %ld operators\n", blocks.size(), width,
              batch, length, operators);
  std::printf("  %-34s %10s %9s %10s %10s %9s\n", "keeps", "kept", "% of base", "peak", "recomputed", "ms");
  const auto plain = static_cast<double>(points[0].kept);
  for (auto& point : points) {
    std::sort(point.ms.begin(), point.ms.end());
    std::printf("  %-34s %10s %8.0f%% %10s %10ld %9.2f\n", point.keeps, refrain::format_bytes(point.kept).c_str(),
                100 * static_cast<double>(point.kept) / plain, refrain::format_bytes(point.peak).c_str(),
                point.replayed, point.ms[point.ms.size() / 2]);
  }

  // 11.3 to 11.5: the first point within the budget recomputes least.
  std::printf("11.4  budget, as a fraction of what the baseline keeps\n");
  bool within = true;
  for (const double budget : {1.0, 0.7, 0.5, 0.3, 0.0}) {
    const auto fits = [&](const Point& p) { return static_cast<double>(p.kept) <= budget * plain; };
    const auto found = std::find_if(points.begin(), points.end(), fits);
    const auto& chosen = found != points.end() ? *found : points.back();
    std::printf("  %.1f  keep %-34s %4.0f%%\n", budget, chosen.keeps, 100 * static_cast<double>(chosen.kept) / plain);
    within = within && (found != points.end() || budget == 0.0);
  }
  bool falls = true;
  for (size_t i = 1; i < points.size(); ++i) {
    falls = falls && points[i].kept < points[i - 1].kept && points[i].replayed >= points[i - 1].replayed;
  }
  const bool part = points.back().replayed < operators;
  if (!within) std::printf("FAILED: no policy within a budget of 0.3\n");
  if (!falls) std::printf("FAILED: a policy does not keep less, or computes less, than the one before it\n");
  if (!part) std::printf("FAILED: all operators were recomputed\n");
  return within && falls && part ? 0 : 1;
}
