// Section 11.3 to 11.5: a memory budget for a whole step, by plan; asked for as torch.compile's activation_memory_budget.
//
// Nothing is marked in the model. The first step is traced, a plan is made for its peak, and the next steps run by it:
// the same bits in less memory.
#include <refrain/refrain.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace nn = torch::nn;

namespace {

struct BlockImpl : nn::Module {
  explicit BlockImpl(int64_t width)
      : norm(nn::LayerNormOptions({width})), up(width, 4 * width), down(4 * width, width) {
    register_module("norm", norm);
    register_module("up", up);
    register_module("down", down);
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return x + down->forward(torch::gelu(up->forward(norm->forward(x))));
  }
  nn::LayerNorm norm;
  nn::Linear up, down;
};
TORCH_MODULE(Block);

struct NetImpl : nn::Module {
  NetImpl(int64_t depth, int64_t width) {
    register_module("blocks", blocks);
    for (int64_t i = 0; i < depth; ++i) blocks->push_back(Block(width));
  }
  torch::Tensor forward(torch::Tensor x) {
    for (size_t i = 0; i < blocks->size(); ++i) {
      const refrain::ModuleScope name("blocks." + std::to_string(i));  // what reports call it; no plan needs it
      x = blocks->ptr<BlockImpl>(i)->forward(torch::dropout(x, 0.1, true));
    }
    return x;
  }
  nn::ModuleList blocks;
};
TORCH_MODULE(Net);

/// The same training each time.
struct Training {
  explicit Training(bool full)
      : net((torch::manual_seed(0), full ? 24 : 8), full ? 512 : 128),
        optimizer(net->parameters(), 1e-3),
        x(torch::randn({full ? 2048 : 1024, full ? 512 : 128})) {}

  void backward() {
    optimizer.zero_grad();
    refrain::reset_peak_memory();
    auto loss = net->forward(x).pow(2).mean();
    loss.backward();
    losses.push_back(loss.item<float>());
    peaks.push_back(refrain::memory_stats().peak);
  }
  void step() {
    backward();
    optimizer.step();
  }

  Net net;
  torch::optim::SGD optimizer;
  torch::Tensor x;
  std::vector<float> losses;
  std::vector<refrain::Bytes> peaks;  ///< of forward and backward, all tensors of the process
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

}  // namespace

int main(int argc, char** argv) {
  const bool full = argc > 1 && std::string_view(argv[1]) == "--full";
  refrain::install_memory_tracking();  // before the model is made, or its weights are not counted
  constexpr int kSteps = 4;

  std::vector<float> plain_losses;
  refrain::Bytes plain_peak = 0;
  {
    Training plain(full);
    for (int i = 0; i < kSteps; ++i) plain.step();
    plain_losses = plain.losses;
    plain_peak = plain.peaks.back();
  }
  std::printf("11.4  a plan for each budget, from the lowest peak (0.0) to the baseline's (1.0)\n");
  std::printf("  baseline    peak %10s\n", refrain::format_bytes(plain_peak).c_str());

  refrain::Bytes last = 0;
  for (const double part : {0.0, 0.3, 0.5, 0.7, 1.0}) {
    Training training(full);
    refrain::MemoryBudget budget(refrain::Budget::fraction(part));  // all that a training needs
    for (int i = 0; i < kSteps; ++i) training.step();
    const auto peak = training.peaks.back();
    std::printf("  budget %.1f  peak %10s, %ld steps by plan\n", part, refrain::format_bytes(peak).c_str(),
                budget.stats().planned_steps);
    expect(same_bits(training.losses, plain_losses), "a loss differs from the baseline's");
    expect(budget.stats().planned_steps + budget.stats().unrecorded_steps == kSteps - 1,
           "a step diverged from its plan");
    expect(peak > last, "a lower budget did not lower the peak");
    last = peak;
    if (part == 0.5) expect(peak < plain_peak * 3 / 4, "half a budget saved less than a quarter");
  }

  // Trace, plan, run by hand: to look at a plan before it is used, and to keep it.
  Training training(full);
  const auto trace =
      refrain::profile([&] { training.backward(); }, refrain::ProfileOptions().runs(2).model("a row of blocks"));
  const auto plan = refrain::plan_step(trace, refrain::Budget::fraction(0.3));
  {
    refrain::MemoryBudget by_plan(plan);
    training.step();
    expect(by_plan.stats().planned_steps == 1, "the step diverged from the profiled one");
  }
  std::printf("11.5  traced, planned and run: %s\n", plan.brief().c_str());
  std::printf("  measured peak %ld bytes, planned %ld, baseline %ld\n", training.peaks.back(), plan.peak(),
              trace.peak());
  expect(plan.fits() && training.peaks.back() == plan.peak(), "the peak differs from the planned one");

  // A budget in bytes holds in the first step too.
  const auto limit = plan.peak() + (trace.peak() - plan.peak()) / 2;
  Training limited(full);
  {
    refrain::MemoryBudget in_bytes(refrain::Budget::bytes(limit));
    for (int i = 0; i < kSteps; ++i) limited.step();
  }
  std::printf("  budget of %s in bytes: peaks", refrain::format_bytes(limit).c_str());
  for (const auto peak : limited.peaks) {
    std::printf(" %s", refrain::format_bytes(peak).c_str());
    expect(peak <= limit, "a step was over its budget in bytes");
  }
  std::printf("\n");
  expect(same_bits(limited.losses, plain_losses), "a loss under a budget in bytes differs from the baseline's");
  return failures == 0 ? 0 : 1;
}
