#include <gtest/gtest.h>
#include <torch/torch.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>

#include "models/lstm.h"
#include "models/resnet.h"
#include "models/transformer.h"
#include "refrain/amp.h"
#include "refrain/memory.h"
#include "refrain/selective.h"
#include "refrain/tape.h"

/// Regions under autocast: loss and gradients of a plain run under the same autocast, to the bit.
namespace refrain {
namespace {

using torch::Tensor;
using Options = std::optional<CheckpointOptions>;

bool is_bit_equal(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const auto x = a.contiguous(), y = b.contiguous();
  return std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

/// What a step leaves behind.
struct Outcome {
  Tensor loss;
  std::vector<Tensor> gradients;
};

void expect_bit_equal(const Outcome& expected, const Outcome& actual, const std::string& what) {
  EXPECT_TRUE(is_bit_equal(expected.loss, actual.loss)) << what << ": loss " << actual.loss << " for " << expected.loss;
  ASSERT_EQ(expected.gradients.size(), actual.gradients.size());
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    EXPECT_TRUE(is_bit_equal(expected.gradients[i], actual.gradients[i]))
        << what << ": gradient " << i << " of " << expected.gradients.size();
  }
}

/// Options of regions, each with its name.
std::vector<std::pair<std::string, CheckpointOptions>> variants() {
  return {
      {"replay", {}},
      {"matmuls", CheckpointOptions().policy(save_matmuls())},
      {"compute intensive", CheckpointOptions().policy(save_compute_intensive())},
      {"random", CheckpointOptions().policy(save_random())},
      {"everything", CheckpointOptions().policy(everything_saveable())},
      {"rerun", CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction)},
      {"strict rerun",
       CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction).determinism_check(DeterminismCheck::kStrict)}};
}

struct Net {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensor(const Options&)> forward;  ///< with every block in a region, if there are options
};

Net make_gpt() {
  models::Gpt net(64, 16, 3, models::BlockOptions{.width = 32, .causal = true, .dropout = 0.2});
  const auto tokens = torch::randint(64, {2, 16}, torch::kLong);
  return {net.ptr(), [=](const Options& o) mutable { return net->forward(tokens, {.per_block = o}); }};
}

Net make_resnet18() {
  models::ResNet net(std::array<int64_t, 4>{2, 2, 2, 2}, false, 10);
  const auto images = torch::randn({2, 3, 40, 40});
  return {net.ptr(), [=](const Options& o) mutable {
            using models::ResNetStrategy;
            return o ? net->forward(images, ResNetStrategy::kPerBlock, *o) : net->forward(images);
          }};
}

Net make_lstm() {
  models::LstmLanguageModel net(64, 16, 2);
  const auto tokens = torch::randint(64, {2, 40}, torch::kLong);
  return {net.ptr(), [=](const Options& o) mutable {
            return o ? net->forward(tokens, models::LstmStrategy::kPerBlock, *o) : net->forward(tokens);
          }};
}

struct Case {
  const char* name;
  Net (*make)();
  at::ScalarType dtype;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name << ' ' << c.dtype; }

class AutocastModelsTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    torch::manual_seed(1);
    net_ = GetParam().make();
  }

  Outcome step(const Options& options, std::optional<bool> cache = std::nullopt) {
    net_.module->zero_grad();
    torch::manual_seed(2);
    std::optional<AutocastScope> autocast(std::in_place, at::kCPU, GetParam().dtype, cache);
    auto output = net_.forward(options);
    EXPECT_EQ(output.scalar_type(), GetParam().dtype);
    autocast.reset();
    const auto loss = output.to(torch::kFloat).square().mean();
    loss.backward();
    Outcome outcome{loss.detach(), {}};
    for (const auto& parameter : net_.module->parameters()) {
      EXPECT_EQ(parameter.grad().scalar_type(), at::kFloat);
      outcome.gradients.push_back(parameter.grad().clone());
    }
    return outcome;
  }

  Net net_;
};

TEST_P(AutocastModelsTest, RegionsAreBitEqual) {
  const Outcome plain = step(std::nullopt);
  for (const auto& [name, options] : variants()) expect_bit_equal(plain, step(options), name);
}

TEST_P(AutocastModelsTest, RegionsAreBitEqualWithoutTheCache) {
  const Outcome plain = step(std::nullopt, false);
  for (const auto& [name, options] : variants()) expect_bit_equal(plain, step(options, false), name);
}

INSTANTIATE_TEST_SUITE_P(Zoo, AutocastModelsTest,
                         testing::Values(Case{"gpt", make_gpt, at::kBFloat16}, Case{"gpt", make_gpt, at::kHalf},
                                         Case{"resnet18", make_resnet18, at::kBFloat16},
                                         Case{"resnet18", make_resnet18, at::kHalf},
                                         // oneDNN has no float16 LSTM for most processors
                                         Case{"lstm", make_lstm, at::kBFloat16}),
                         [](const auto& instance) {
                           return std::string(instance.param.name) +
                                  (instance.param.dtype == at::kHalf ? "_f16" : "_bf16");
                         });

/// A weight that several regions read, and where they read it.
class SharedWeightTest : public testing::Test {
 protected:
  static constexpr int64_t kWidth = 256;
  static constexpr Bytes kCastBytes = 2 * kWidth * kWidth;

  Tensor layer(const Tensor& x) const { return torch::gelu(x.mm(w_)).to(torch::kFloat) + x; }
  Tensor run(const Options& options, const Tensor& x) const {
    const auto fn = [this](const Tensor& y) { return layer(y); };
    return options ? checkpoint(*options, fn, x) : fn(x);
  }
  /// `program` plain and in regions.
  void expect_the_same(const std::function<Tensor(const Options&)>& program) {
    const auto outcome = [&](const Options& options) {
      w_.mutable_grad().reset();
      const auto loss = program(options);
      loss.backward();
      return Outcome{loss.detach(), {w_.grad().clone()}};
    };
    const Outcome plain = outcome(std::nullopt);
    for (const auto& [name, options] : variants()) expect_bit_equal(plain, outcome(options), name);
  }

  void SetUp() override { torch::manual_seed(3); }
  Tensor x_ = torch::randn({2, kWidth}), w_ = (torch::randn({kWidth, kWidth}) / 8).set_requires_grad(true);
};

TEST_F(SharedWeightTest, SiblingsSumTheirGradientsInTheCastAsAPlainRunDoes) {
  expect_the_same([&](const Options& options) {
    AutocastScope autocast(at::kCPU, at::kBFloat16);
    auto x = x_;
    for (int i = 0; i < 5; ++i) x = run(options, x);
    return x.square().mean();
  });
}

TEST_F(SharedWeightTest, BackwardInsideTheScopeOrUnderAnother) {
  for (const bool another : {false, true}) {
    const auto outcome = [&](const Options& options) {
      w_.mutable_grad().reset();
      AutocastScope autocast(at::kCPU, at::kBFloat16);
      const auto loss = run(options, run(options, x_)).square().mean();
      std::optional<AutocastScope> of_backward;
      if (another) of_backward.emplace(at::kCPU, at::kHalf);
      loss.backward();
      return Outcome{loss.detach(), {w_.grad().clone()}};
    };
    const Outcome plain = outcome(std::nullopt);
    for (const auto& [name, options] : variants()) expect_bit_equal(plain, outcome(options), name);
  }
}

TEST_F(SharedWeightTest, OffInsideARegion) {
  expect_the_same([&](const Options& options) {
    AutocastScope autocast(at::kCPU, at::kBFloat16);
    const auto mixed = [this](const Tensor& y) {
      const auto half = layer(y);
      const auto off = AutocastScope::off(at::kCPU);
      const auto full = half.mm(w_);
      EXPECT_EQ(full.scalar_type(), at::kFloat);
      return full.tanh() + half;
    };
    const auto y = options ? checkpoint(*options, mixed, x_) : mixed(x_);
    return run(options, y).square().mean();
  });
}

TEST_F(SharedWeightTest, RegionInAScopeThatIsOff) {
  expect_the_same([&](const Options& options) {
    AutocastScope autocast(at::kCPU, at::kHalf);
    auto x = run(options, x_);
    {
      const auto off = AutocastScope::off(at::kCPU);
      x = run(options, x);
    }
    return run(options, x).square().mean();
  });
}

TEST_F(SharedWeightTest, ScopeInsideARegion) {
  expect_the_same([&](const Options& options) {
    const auto scoped = [this](const Tensor& y) {
      AutocastScope autocast(at::kCPU, at::kBFloat16);
      return layer(layer(y));
    };
    auto x = options ? checkpoint(*options, scoped, x_) : scoped(x_);
    x = options ? checkpoint(*options, scoped, x) : scoped(x);
    return x.square().mean();
  });
}

TEST_F(SharedWeightTest, WeightsThatChangeBetweenSteps) {
  const auto train = [&](const Options& options) {
    const auto start = w_.detach().clone();
    std::vector<Tensor> losses;
    for (int i = 0; i < 3; ++i) {
      w_.mutable_grad().reset();
      Tensor loss;
      {
        AutocastScope autocast(at::kCPU, at::kBFloat16);
        loss = run(options, run(options, x_)).square().mean();
      }
      loss.backward();
      torch::NoGradGuard no_grad;
      w_.sub_(w_.grad());
      losses.push_back(loss.detach());
    }
    Outcome outcome{losses.back(), {w_.detach().clone(), losses[0], losses[1]}};
    torch::NoGradGuard no_grad;
    w_.copy_(start);
    return outcome;
  };
  const Outcome plain = train(std::nullopt);
  for (const auto& [name, options] : variants()) expect_bit_equal(plain, train(options), name);
}

TEST_F(SharedWeightTest, RegionsLetTheCastGoWithTheScope) {
  const auto held = [&](const Options& options) {
    MemoryScope memory;
    Tensor y;
    {
      AutocastScope autocast(at::kCPU, at::kBFloat16);
      y = run(options, run(options, x_));
      EXPECT_GE(memory.current(), kCastBytes);  // the cache has it
    }
    return memory.current();
  };
  install_memory_tracking();
  EXPECT_GE(held(std::nullopt), kCastBytes);
  for (const auto source : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction})
    EXPECT_LT(held(CheckpointOptions().recompute_mode(source)), kCastBytes / 8);
  EXPECT_LT(held(CheckpointOptions().policy(save_matmuls())), kCastBytes / 8);
}

TEST_F(SharedWeightTest, BackwardNeedsOneCastAtATime) {
  const auto peak = [&](const Options& options) {
    Tensor loss;
    {
      AutocastScope autocast(at::kCPU, at::kBFloat16);
      auto x = x_;
      for (int i = 0; i < 6; ++i) x = run(options, x);
      loss = x.square().mean();
    }
    w_.mutable_grad() = torch::zeros_like(w_);
    MemoryScope memory;
    loss.backward();
    return memory.peak();
  };
  install_memory_tracking();
  const Bytes plain = peak(std::nullopt);
  EXPECT_LE(peak(CheckpointOptions()), plain + kCastBytes + kCastBytes / 8);
}

}  // namespace
}  // namespace refrain
