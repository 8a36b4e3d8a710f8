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
  bool is_long = false;    ///< torture costs the square of the number of operators: one micro-batch and one size must do
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model << ' ' << c.strategy; }

/// What a run leaves behind, name by name, as digests: the weights of a ResNet-50 are 100 MB.
using Trace = std::vector<std::pair<std::string, size_t>>;

size_t digest_of(const Tensor& tensor) { return std::hash<std::string>()(bits_of(tensor)); }

class Training {
 public:
  Training(const Case& c, const std::string& optimizer, const refrain::models::Batch& batch)
      : model_(refrain::models::make_model(c.model, c.sizes)), batch_(batch) {
    model_->set_strategy(c.strategy);
    if (optimizer == "adam")
      optimizer_ = std::make_unique<torch::optim::Adam>(parameters(), 0.001);
    else
      optimizer_ = std::make_unique<torch::optim::SGD>(parameters(), 0.01);
    torch::manual_seed(5);
  }

  std::vector<Tensor> parameters() { return model_->module().parameters(); }

  /// Gradients of some micro-batches, then the optimizer.
  void step(Trace& trace, int micro_batches) {
    optimizer_->zero_grad();
    for (int micro = 0; micro < micro_batches; ++micro) {
      auto loss = model_->loss(batch_);
      loss.backward();
      trace.emplace_back("loss", digest_of(loss));
    }
    for (auto& item : model_->module().named_parameters())
      trace.emplace_back("gradient " + item.key(), digest_of(item.value().grad()));
    optimizer_->step();
    for (auto& item : model_->module().named_buffers()) trace.emplace_back("buffer " + item.key(), digest_of(item.value()));
    for (auto& item : model_->module().named_parameters()) trace.emplace_back(item.key(), digest_of(item.value()));
    trace.emplace_back("generator", digest_of(at::detail::getDefaultCPUGenerator().get_state()));
  }

  /// All that a step changes but the optimizer's state.
  std::vector<Tensor> state() {
    std::vector<Tensor> all{at::detail::getDefaultCPUGenerator().get_state()};
    for (const auto& tensors : {model_->module().parameters(), model_->module().buffers()})
      for (const auto& tensor : tensors) all.push_back(tensor.detach().clone());
    return all;
  }

  void set_state(const std::vector<Tensor>& all) {
    torch::NoGradGuard no_grad;
    auto generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(all[0]);
    size_t next = 1;
    for (const auto& tensors : {model_->module().parameters(), model_->module().buffers()})
      for (auto tensor : tensors) tensor.copy_(all[next++]);
  }

 private:
  std::unique_ptr<refrain::models::TrainableModel> model_;
  refrain::models::Batch batch_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

refrain::models::Batch batch_of(const Case& c) {
  return refrain::models::make_model(c.model, c.sizes)->synthetic_batch(1);
}

Trace train(const Case& c, const std::string& optimizer, const refrain::models::Batch& batch, int steps = 2, int micro_batches = 2) {
  Training training(c, optimizer, batch);
  Trace trace;
  for (int i = 0; i < steps; ++i) training.step(trace, micro_batches);
  return trace;
}

/// @param got  may have ended early.
void expect_prefix(const Trace& want, const Trace& got) {
  ASSERT_GE(want.size(), got.size());
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_TRUE(want[i] == got[i]) << want[i].first << " (entry " << i << ") differs from the plain run";
}

void expect_equal(const Trace& want, const Trace& got) {
  EXPECT_EQ(want.size(), got.size());
  expect_prefix(want, got);
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
    Training training(GetParam(), "sgd", batch);
    std::vector<size_t> unchanged;
    for (const auto& p : training.parameters()) unchanged.push_back(digest_of(p));
    const auto fresh = training.state();
    Bytes of_fresh = 0;
    for (const auto& tensor : fresh) of_fresh += static_cast<Bytes>(tensor.nbytes());
    try {
      keep_limit(training, plain, before + of_fresh + peak * percent / 100);
    } catch (const refrain::OutOfMemory& error) {
      EXPECT_GT(error.missing(), 0);
      EXPECT_EQ(error.missing(), error.floor() - error.limit());
      refused = fmt::format("{} %: {}", percent, std::string(error.msg()));
      EXPECT_LT(percent, GetParam().must_fit) << refused;
      // no update is half done
      const auto parameters = training.parameters();
      for (size_t i = 0; i < parameters.size(); ++i) {
        const auto known = digest_of(parameters[i]);
        EXPECT_TRUE(known == unchanged[i] || std::any_of(plain.begin(), plain.end(), [&](const auto& entry) {
                      return entry.second == known;
                    })) << "parameter " << i << " is none that the plain run had";
      }
      training.set_state(fresh);
      Trace next;
      for (int i = 0; i < 2; ++i) training.step(next, 2);
      expect_equal(plain, next);
    }
  }
  flush_engine();
  EXPECT_LE(refrain::memory_stats().current, before + 64);
  std::cout << GetParam().model << ' ' << GetParam().strategy << ", plain peak " << peak << ": refused at " << refused << '\n';
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
