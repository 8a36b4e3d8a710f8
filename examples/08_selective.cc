// Section 8: save what is expensive to compute, recompute what is cheap.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nn = torch::nn;

namespace {

struct Mode {
  const char* name;
  std::optional<refrain::CheckpointOptions> options;  ///< none: no region
  refrain::Bytes kept = 0, peak = 0;
  int64_t replayed = 0;
  std::vector<double> ms = {};
  std::vector<torch::Tensor> gradients = {};
};

void step(Mode& mode, nn::ModuleList& blocks, const torch::Tensor& x) {
  blocks->zero_grad();
  const auto replayed = refrain::tape_stats().replayed_ops;
  const auto begin = std::chrono::steady_clock::now();
  {
    refrain::MemoryScope memory;
    auto h = x;
    for (size_t i = 0; i < blocks->size(); ++i) {
      const auto block = blocks->ptr<nn::SequentialImpl>(i);
      refrain::ModuleScope name("block" + std::to_string(i));  // what a policy may ask for
      h = mode.options ? refrain::checkpoint(*mode.options, block, h) : block->forward(h);
    }
    auto loss = h.sum();
    h.reset();
    mode.kept = memory.current();
    loss.backward();
    mode.peak = memory.peak();
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  mode.ms.push_back(took.count());
  mode.replayed = refrain::tape_stats().replayed_ops - replayed;
  mode.gradients.clear();
  for (const auto& p : blocks->parameters()) mode.gradients.push_back(p.grad());
}

bool same(const Mode& a, const Mode& b) {
  bool equal = true;
  for (size_t i = 0; i < a.gradients.size(); ++i) equal = equal && torch::equal(a.gradients[i], b.gradients[i]);
  return equal;
}

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";
  const int64_t dim = full ? 2048 : 128, rows = full ? 64 * 128 : 1024, count = full ? 1 : 4;
  torch::manual_seed(0);

  // 8.1 to 8.3: a policy is a function from an operator to an answer; ready ones are policies too.
  const refrain::Policy last_products = [half = "block" + std::to_string(count / 2)](const refrain::OpContext& op) {
    return op.name() == "aten::addmm" && op.scope() >= half ? refrain::CheckpointPolicy::kMustSave
                                                            : refrain::CheckpointPolicy::kPreferRecompute;
  };
  const auto with = [](refrain::Policy policy) { return refrain::CheckpointOptions().policy(std::move(policy)); };
  std::vector<Mode> modes = {
      {"no checkpointing", std::nullopt},
      {"recompute everything", refrain::CheckpointOptions()},
      {"save_matmuls", with(refrain::save_matmuls())},
      {"save_compute_intensive", with(refrain::save_compute_intensive())},
      {"save_ops({\"aten::addmm\"})", with(refrain::save_ops({"aten::addmm"}))},  // 8.5: an allow-list
      {"ours: products of later blocks", with(last_products)},
  };

  // 8.6: feed-forward parts of transformer blocks, each a region.
  nn::ModuleList blocks;
  for (int64_t i = 0; i < count; ++i) {
    blocks->push_back(nn::Sequential(nn::LayerNorm(nn::LayerNormOptions({dim})), nn::Linear(dim, 4 * dim), nn::GELU(),
                                     nn::Linear(4 * dim, dim)));
  }
  const auto x = torch::randn({rows, dim});
  for (int i = 0; i < (full ? 1 : 5); ++i) {
    for (auto& mode : modes) step(mode, blocks, x);  // in turn, so that a slow moment slows all of them
  }
  std::printf("8.6  feed-forward parts: %ld, width %ld, %ld rows\n", count, dim, rows);
  std::printf("  %-30s %10s %10s %15s %9s   gradients\n", "", "kept", "peak", "recomputed ops", "ms");
  bool equal = true;
  for (auto& mode : modes) {
    std::sort(mode.ms.begin(), mode.ms.end());
    std::printf("  %-30s %10s %10s %15ld %9.2f   %s\n", mode.name, refrain::format_bytes(mode.kept).c_str(),
                refrain::format_bytes(mode.peak).c_str(), mode.replayed, mode.ms[mode.ms.size() / 2],
                same(mode, modes[0]) ? "equal" : "DIFFERENT");
    equal = equal && same(mode, modes[0]);
  }

  // 8.2: a name that matches nothing would save nothing and say nothing; here it is an error.
  bool refused = false;
  try {
    (void)refrain::save_ops({"aten::adm"});
  } catch (const refrain::InvalidArgument& error) {
    refused = true;
    std::printf("8.2  %s\n", error.what());
  }

  const auto &plain = modes[0], &all_again = modes[1], &selective = modes[2], &ours = modes.back();
  const bool between = all_again.kept < selective.kept && selective.kept < plain.kept &&
                       selective.replayed < all_again.replayed && plain.replayed == 0 && all_again.kept < ours.kept &&
                       ours.kept <= selective.kept;
  if (!equal) std::printf("FAILED: gradients differ\n");
  if (!between) std::printf("FAILED: a policy is not between the baseline and recomputing everything\n");
  if (!refused) std::printf("FAILED: an unknown operator was accepted\n");
  return equal && between && refused ? 0 : 1;
}
