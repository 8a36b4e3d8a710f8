#include <ATen/CPUGeneratorImpl.h>

#include "models/zoo.h"
#include "tests/budget/cap_support.h"

/// Every model under a cap: the same bits as the plain run, and never a byte above the limit.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::MemoryCap;
using refrain::MemoryCapOptions;

struct Case {
  const char* model;
  refrain::models::ModelOptions sizes;
  const char* strategy = "none";
  int must_fit = 100;  ///< percent of the peak without a cap; what regions keep cannot leave
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model << ' ' << c.strategy; }

using Trace = std::vector<std::pair<std::string, std::string>>;

class Training {
 public:
  Training(const Case& c, const std::string& kind) : model_(refrain::models::make_model(c.model, c.sizes)) {
    model_->set_strategy(c.strategy);
    batch_ = model_->synthetic_batch(1);
    if (kind == "adam")
      optimizer_ = std::make_unique<torch::optim::Adam>(model_->module().parameters(), 0.001);
    else
      optimizer_ = std::make_unique<torch::optim::SGD>(model_->module().parameters(), 0.01);
    torch::manual_seed(5);
  }

  /// Gradients of two micro-batches, then the optimizer.
  void step(Trace& trace) {
    optimizer_->zero_grad();
    for (int micro = 0; micro < 2; ++micro) {
      auto loss = model_->loss(batch_);
      loss.backward();
      trace.emplace_back("loss", bits_of(loss));
    }
    for (auto& item : model_->module().named_parameters())
      trace.emplace_back("gradient " + item.key(), bits_of(item.value().grad()));
    optimizer_->step();
    for (auto& item : model_->module().named_buffers()) trace.emplace_back("buffer " + item.key(), bits_of(item.value()));
    for (auto& item : model_->module().named_parameters()) trace.emplace_back(item.key(), bits_of(item.value()));
    trace.emplace_back("generator", bits_of(at::detail::getDefaultCPUGenerator().get_state()));
  }

 private:
  std::unique_ptr<refrain::models::TrainableModel> model_;
  refrain::models::Batch batch_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

Trace train(const Case& c, const std::string& optimizer) {
  Training training(c, optimizer);
  Trace trace;
  for (int i = 0; i < 2; ++i) training.step(trace);
  return trace;
}

void expect_equal(const Trace& want, const Trace& got) {
  ASSERT_EQ(want.size(), got.size());
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT_TRUE(want[i] == got[i]) << want[i].first << " (entry " << i << ") differs from the plain run";
}

class CapModelsTest : public testing::TestWithParam<Case> {};

TEST_P(CapModelsTest, IsBitEqualWhenEverythingLeavesBeforeEveryOperator) {
  const Trace plain = train(GetParam(), "adam");
  for (const Bytes least : {Bytes{4096}, Bytes{1}}) {
    MemoryCap cap(kNoLimit, MemoryCapOptions().min_bytes(least));
    const Torture torture;
    expect_equal(plain, train(GetParam(), "adam"));
    EXPECT_GT(cap.stats().recomputes, 0);
  }
}

TEST_P(CapModelsTest, StaysWithinEveryLimit) {
  refrain::install_memory_tracking();
  const Trace plain = train(GetParam(), "sgd");
  const Bytes before = refrain::memory_stats().current;
  refrain::reset_peak_memory();
  train(GetParam(), "sgd");
  const Bytes peak = refrain::memory_stats().peak - before;
  std::string refused;
  for (int percent = 110; percent >= 10 && refused.empty(); percent -= 10) {
    const Bytes limit = before + peak * percent / 100;
    refrain::reset_peak_memory();
    try {
      MemoryCap cap(limit);
      const auto got = train(GetParam(), "sgd");
      EXPECT_LE(refrain::memory_stats().peak, limit);
      expect_equal(plain, got);
      EXPECT_TRUE(cap.stats().evictions > 0 || percent > 90) << percent;
    } catch (const refrain::OutOfMemory& error) {
      EXPECT_LE(refrain::memory_stats().peak, limit);
      EXPECT_GT(error.missing(), 0);
      refused = fmt::format("{} %: {}", percent, std::string(error.msg()));
      EXPECT_LT(percent, GetParam().must_fit) << refused;
    }
    flush_engine();
    EXPECT_LE(refrain::memory_stats().current, before + 64) << "after " << percent << " %";
  }
  std::cout << GetParam().model << " refused at " << refused << '\n';
}

INSTANTIATE_TEST_SUITE_P(Zoo, CapModelsTest,
                         testing::Values(Case{"mlp", {.batch = 2048, .depth = 10, .width = 32}},
                                         Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}},
                                         Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, "per_block", 110},
                                         Case{"gpt", {.batch = 8, .seq = 64, .depth = 3, .width = 64, .dropout = 0.3}},
                                         Case{"resnet18", {.batch = 2, .image_size = 32}},
                                         Case{"resnet18", {.batch = 2, .image_size = 32}, "per_block", 110},
                                         Case{"unet", {.batch = 4, .image_size = 32, .width = 8}},
                                         Case{"lstm", {.batch = 32, .seq = 32, .depth = 3, .width = 32}}));

}  // namespace
}  // namespace refrain_test
