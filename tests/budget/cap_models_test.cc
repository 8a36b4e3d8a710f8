#include "tests/budget/model_training.h"

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
  int must_fit = 100;    ///< percent of the peak without a cap; what regions keep cannot leave
  bool is_long = false;  ///< torture costs the square of the number of operators: one micro-batch and one size must do
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model << ' ' << c.strategy; }

refrain::models::Batch batch_of(const Case& c) {
  return refrain::models::make_model(c.model, c.sizes)->synthetic_batch(1);
}

Trace train(const Case& c, const std::string& optimizer, const refrain::models::Batch& batch, int steps = 2,
            int micro_batches = 2) {
  Training training(c.model, c.sizes, optimizer, batch, c.strategy);
  Trace trace;
  for (int i = 0; i < steps; ++i) training.step(trace, micro_batches);
  return trace;
}

class CapModelsTest : public testing::TestWithParam<Case> {};

TEST_P(CapModelsTest, IsBitEqualWhenEverythingLeavesBeforeEveryOperator) {
  const int count = GetParam().is_long ? 1 : 2;
  const auto batch = batch_of(GetParam());
  const Trace plain = train(GetParam(), "adam", batch, count, count);
  for (const Bytes least : {Bytes{1}, Bytes{4096}}) {
    MemoryCap cap(kNoLimit, MemoryCapOptions().min_bytes(least));
    const Torture torture;
    expect_equal(plain, train(GetParam(), "adam", batch, count, count));
    EXPECT_GT(cap.stats().recomputes, 0);
    if (GetParam().is_long) break;
  }
}

// A limit for all steps, for which the model is there already.
void keep_limit(Training& training, const Trace& plain, Bytes limit) {
  Trace got;
  refrain::reset_peak_memory();
  try {
    MemoryCap cap(limit);
    for (int i = 0; i < 2; ++i) training.step(got, 2);
    EXPECT_GT(cap.stats().evictions, 0);
  } catch (...) {
    EXPECT_LE(refrain::memory_stats().peak, limit);
    expect_prefix(plain, got);
    throw;
  }
  EXPECT_LE(refrain::memory_stats().peak, limit);
  expect_equal(plain, got);
}

TEST_P(CapModelsTest, StaysWithinEveryLimitThatCanBeKept) {
  refrain::install_memory_tracking();
  const auto batch = batch_of(GetParam());
  train(GetParam(), "sgd", batch);
  flush_engine();
  const Bytes before = refrain::memory_stats().current;
  refrain::reset_peak_memory();
  const Trace plain = train(GetParam(), "sgd", batch);
  const Bytes peak = refrain::memory_stats().peak - before;
  std::string refused;
  for (int percent = 90; percent >= 10 && refused.empty(); percent -= 10) {
    Training training(GetParam().model, GetParam().sizes, "sgd", batch, GetParam().strategy);
    std::vector<size_t> unchanged;
    for (const auto& p : training.parameters()) unchanged.push_back(digest_of(p));
    const auto fresh = training.state();
    Bytes of_fresh = 0;
    for (const auto& tensor : fresh) of_fresh += static_cast<Bytes>(tensor.nbytes());
    try {
      keep_limit(training, plain, before + of_fresh + peak * percent / 100);
    } catch (const refrain::OutOfMemory& error) {
      EXPECT_GT(error.missing(), 0);
      EXPECT_EQ(error.missing(), error.min_limit() - error.limit());
      refused = fmt::format("{} %: {}", percent, std::string(error.msg()));
      EXPECT_LT(percent, GetParam().must_fit) << refused;
      // no update is half done
      const auto parameters = training.parameters();
      for (size_t i = 0; i < parameters.size(); ++i) {
        const auto known = digest_of(parameters[i]);
        EXPECT_TRUE(known == unchanged[i] ||
                    std::any_of(plain.begin(), plain.end(), [&](const auto& entry) { return entry.second == known; }))
            << "parameter " << i << " is none that the plain run had";
      }
      training.set_state(fresh);
      Trace next;
      for (int i = 0; i < 2; ++i) training.step(next, 2);
      expect_equal(plain, next);
    }
  }
  flush_engine();
  EXPECT_LE(refrain::memory_stats().current, before + 64);
  std::cout << GetParam().model << ' ' << GetParam().strategy << ", plain peak " << peak << ": refused at " << refused
            << '\n';
}

// Sizes at which activations are more than weights, where that costs no time.
INSTANTIATE_TEST_SUITE_P(
    Zoo, CapModelsTest,
    testing::Values(Case{"mlp", {.batch = 2048, .depth = 10, .width = 32}, "none", 90},
                    Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, "none", 40},
                    Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, "per_block"},
                    Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, "selective"},
                    Case{"gptsmall", {.batch = 8, .seq = 64, .depth = 3}, "offload:host"},
                    Case{"gpt", {.batch = 8, .seq = 64, .depth = 3, .width = 64, .dropout = 0.3}, "none", 40},
                    Case{"resnet18", {.batch = 2, .image_size = 32}, "none", 100, true},
                    Case{"resnet18", {.batch = 2, .image_size = 32}, "per_block"},
                    Case{"resnet50", {.batch = 2, .image_size = 32}, "none", 100, true},
                    Case{"densenet121", {.batch = 2, .image_size = 32}, "none", 100, true},
                    Case{"densenet121", {.batch = 2, .image_size = 32}, "per_block"},
                    Case{"unet", {.batch = 4, .image_size = 32, .width = 8}, "none", 60},
                    Case{"lstm", {.batch = 32, .seq = 32, .depth = 3, .width = 32}, "none", 40},
                    Case{"lstm-ragged", {.batch = 8, .seq = 12, .depth = 2, .width = 32}, "none", 90},
                    Case{"treelstm", {.batch = 4, .seq = 8, .width = 64}, "none", 100, true},
                    Case{"treelstm", {.batch = 4, .seq = 8, .width = 64}, "per_block"}));

}  // namespace
}  // namespace refrain_test
