#include <ATen/CPUGeneratorImpl.h>

#include <cstdlib>
#include <random>

#include "memory/testing.h"
#include "tests/budget/cap_support.h"

/// Whole trainings under caps: limits that change, allocations that fail, a thousand steps, a step of very many operators.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::MemoryCap;
using refrain::MemoryCapOptions;

/// Convolutions with statistics, in-place activations and dropout, and its optimizer.
class Net {
 public:
  Net() {
    torch::manual_seed(1);
    layers_ = torch::nn::Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)),
                                    torch::nn::BatchNorm2d(8), torch::nn::ReLU(torch::nn::ReLUOptions(true)),
                                    torch::nn::Conv2d(torch::nn::Conv2dOptions(8, 8, 3).padding(1)),
                                    torch::nn::BatchNorm2d(8), torch::nn::ReLU(torch::nn::ReLUOptions(true)),
                                    torch::nn::MaxPool2d(2), torch::nn::Flatten(), torch::nn::Dropout(0.3),
                                    torch::nn::Linear(8 * 8 * 8, 16), torch::nn::GELU(), torch::nn::Linear(16, 10));
    optimizer_ = std::make_unique<torch::optim::Adam>(layers_->parameters(), 0.001);
    before_ = state();
  }

  /// Forward and backward of a batch that `number` says, of `rows` images. Repeatable but for the statistics.
  template <typename Between>
  std::string gradients(int64_t number, int64_t rows, const Between& between) {
    torch::manual_seed(number);
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(number));
    optimizer_->zero_grad();
    std::string losses;
    for (int micro = 0; micro < 2; ++micro) {
      const auto x = torch::randn({rows, 3, 16, 16}, generator);
      const auto y = torch::randint(10, {rows}, generator, torch::kLong);
      const auto loss = torch::cross_entropy_loss(layers_->forward(x), y);
      between();
      loss.backward();
      losses += bits_of(loss);
    }
    return losses;
  }
  void update() { optimizer_->step(); }
  void forget_gradients() { optimizer_->zero_grad(); }

  /// Parameters, gradients and statistics.
  std::string bits() {
    std::string all;
    for (const auto& p : layers_->parameters()) all += bits_of(p) + bits_of(p.grad());
    for (const auto& b : layers_->buffers()) all += bits_of(b);
    return all;
  }
  void restore_statistics() {
    torch::NoGradGuard no_grad;
    size_t i = 0;
    for (auto& b : layers_->buffers()) b.copy_(before_[i++]);
  }
  void keep_statistics() { before_ = state(); }
  Tensor predict(const Tensor& x) {
    torch::NoGradGuard no_grad;
    layers_->eval();
    auto y = layers_->forward(x);
    layers_->train();
    return y;
  }

 private:
  Tensors state() {
    Tensors all;
    for (const auto& b : layers_->buffers()) all.push_back(b.clone());
    return all;
  }

  torch::nn::Sequential layers_{nullptr};
  std::unique_ptr<torch::optim::Adam> optimizer_;
  Tensors before_;
};

class CapTraining : public TapeTest {
 protected:
  void SetUp() override {
    refrain::install_memory_tracking();
    TapeTest::SetUp();
  }
};

Bytes peak_of(const std::function<void()>& call) {
  const refrain::MemoryScope scope;
  call();
  return scope.peak();
}

/// Largest limit over `level` at which `call` is refused, to `step` bytes; limits above it were kept.
Bytes least_limit(Bytes level, Bytes enough, Bytes step, const std::function<void()>& call) {
  Bytes refused = 0;
  while (enough - refused > step) {
    const Bytes middle = (refused + enough) / 2;
    try {
      MemoryCap cap(level + middle);
      call();
      enough = middle;
    } catch (const refrain::OutOfMemory&) {
      refused = middle;
    }
  }
  return enough;
}

// REFRAIN_FUZZ_SEED: of the first; REFRAIN_FUZZ_PROGRAMS: how many trainings
TEST_F(CapTraining, GoesOnThroughRandomLimitsAndRefusals) {
  const char* asked = std::getenv("REFRAIN_FUZZ_SEED");
  const char* count = std::getenv("REFRAIN_FUZZ_PROGRAMS");
  const int first = asked ? std::atoi(asked) : 1, trainings = count ? std::atoi(count) : 4;
  constexpr int kSteps = 60;
  int done = 0, refused = 0;
  int64_t recomputes = 0;
  for (int seed = first; seed < first + trainings; ++seed) {
    std::mt19937_64 dice(static_cast<uint64_t>(seed));
    const auto uniform = [&](double low, double high) { return std::uniform_real_distribution<>(low, high)(dice); };
    struct Done {
      int64_t number, rows;
      std::string losses;
    };
    std::vector<Done> steps;
    std::string got;
    {
      Net net;
      const Bytes level = refrain::memory_stats().current;
      const Bytes peak = peak_of([&] { net.gradients(1, 24, [] {}); });
      net.restore_statistics();
      MemoryCap outer(kNoLimit, uniform(0, 1) < 0.5 ? every_byte() : MemoryCapOptions());
      for (int64_t number = 1; number <= kSteps; ++number) {
        const int64_t rows = 8 + static_cast<int64_t>(dice() % 17);
        std::unique_ptr<MemoryCap> limit, later;
        const auto any = [&] {
          const auto bytes = level + static_cast<Bytes>(uniform(0.5, 1.2) * static_cast<double>(peak));
          return std::make_unique<MemoryCap>(bytes, MemoryCapOptions().min_bytes(dice() % 2 ? 1 : 4096));
        };
        net.keep_statistics();
        try {
          if (uniform(0, 1) < 0.8) limit = any();
          auto losses = net.gradients(number, rows, [&] {
            const double what = uniform(0, 1);
            if (what < 0.4) later = any();
            if (what > 0.8) limit.reset();
            if (what > 0.9) evict_all();
          });
          limit.reset();
          later.reset();
          net.update();
          steps.push_back({number, rows, std::move(losses)});
        } catch (const refrain::OutOfMemory&) {
          ++refused;
          limit.reset();
          later.reset();
          net.restore_statistics();
        }
        if (uniform(0, 1) < 0.3) net.predict(torch::ones({4, 3, 16, 16}));
      }
      net.forget_gradients();
      got = net.bits();
      recomputes += outer.stats().recomputes;
    }
    Net plain;
    for (const auto& step : steps) {
      ASSERT_TRUE(step.losses == plain.gradients(step.number, step.rows, [] {}))
          << "seed " << seed << ", step " << step.number;
      plain.update();
    }
    plain.forget_gradients();
    ASSERT_TRUE(plain.bits() == got) << "seed " << seed;
    done += static_cast<int>(steps.size());
  }
  std::cout << fmt::format("{} trainings: {} steps done, {} refused, {} recomputes\n", trainings, done, refused,
                           recomputes);
  if (asked || count) return;
  EXPECT_GT(done, 60);
  EXPECT_GT(refused, 20);
  EXPECT_GT(recomputes, 200);
}

TEST_F(CapTraining, AnyAllocationMayFailNearTheFloor) {
  Net net;
  const auto step = [&] {
    net.restore_statistics();
    net.gradients(1, 24, [] {});
    const auto all = net.bits();
    net.forget_gradients();
    return all;
  };
  const auto want = step();
  flush_engine();
  const Bytes level = refrain::memory_stats().current;
  const Bytes peak = peak_of(step);
  const Bytes least = least_limit(level, peak, 1024, [&] {
    for (int i = 0; i < 3; ++i) step();
  });
  EXPECT_LT(least, peak * 9 / 10);
  MemoryCap cap(level + least * 105 / 100);
  int failures = 0;
  for (int64_t n = 1;; ++n) {
    refrain::memory_testing::fail_nth_allocation(n);
    std::string thrown;
    try {
      step();
    } catch (const c10::OutOfMemoryError& error) {
      thrown = error.what_without_backtrace();
    }
    const bool fired = refrain::memory_testing::failure_fired();
    refrain::memory_testing::fail_nth_allocation(0);
    net.forget_gradients();
    ASSERT_EQ(!thrown.empty(), fired) << "allocation " << n << ": " << thrown;
    if (!fired) break;
    ++failures;
    std::string next;
    try {
      next = step();
    } catch (const std::exception& error) {
      FAIL() << "the step after allocation " << n << " failed: " << error.what();
    }
    ASSERT_TRUE(want == next) << "after allocation " << n << " failed";
  }
  EXPECT_GT(failures, 150);
  std::cout << fmt::format("plain peak {}, least limit {}, {} allocations failed once\n", peak, least, failures);
}

TEST_F(CapTraining, AThousandStepsLeaveNothingBehind) {
  Net net;
  const auto step = [&](int64_t i) {
    net.gradients(i, 16, [] {});
    net.update();
  };
  step(1);
  const Bytes level = refrain::memory_stats().current;
  const Bytes peak = peak_of([&] { step(2); });
  const Bytes least = least_limit(level, peak, 4096, [&] {
    for (int i = 0; i < 3; ++i) step(2);
  });
  MemoryCap cap(level + least * 105 / 100);
  constexpr int kSteps = 1000;
  struct Left {
    Live live;
    Bytes bytes, evicted;
  };
  std::vector<Left> left;
  for (int i = 0; i < kSteps; ++i) {
    step(3 + i);
    left.push_back({live(), refrain::memory_stats().current - level, evicted_bytes()});
  }
  EXPECT_GT(cap.stats().recomputes, 2 * kSteps);
  const auto most = [&](int from, int to, const auto& of) {
    int64_t found = 0;
    for (int i = from; i < to; ++i) found = std::max<int64_t>(found, of(left[static_cast<size_t>(i)]));
    return found;
  };
  const auto expect_steady = [&](const char* what, const auto& of) {
    EXPECT_LE(most(kSteps / 2, kSteps, of), most(10, kSteps / 2, of)) << what << " grow";
    std::cout << fmt::format("{}: {} after a few steps, at most {} then\n", what, of(left[10]), most(10, kSteps, of));
  };
  expect_steady("operators", [](const Left& n) { return n.live.ops; });
  expect_steady("values", [](const Left& n) { return n.live.values; });
  expect_steady("slots", [](const Left& n) { return n.live.slots; });
  expect_steady("regions", [](const Left& n) { return n.live.regions; });
  expect_steady("bytes", [](const Left& n) { return n.bytes; });
  expect_steady("evicted bytes", [](const Left& n) { return n.evicted; });
}

// Forward and backward of `layers` layers: eight operators each.
std::string long_step(int64_t layers) {
  auto w = torch::linspace(0.5, 1, 256).requires_grad_();
  auto h = torch::linspace(-1, 1, 256) * w;
  for (int64_t i = 0; i < layers; ++i) h = h + (h * w).tanh() * 0.01;
  h.sum().backward();
  return bits_of(w.grad());
}

void expect_long_step(int64_t layers, int percent) {
  std::string want;
  const Bytes peak = peak_of([&] { want = long_step(layers); });
  const Bytes level = refrain::memory_stats().current;
  MemoryCap cap(level + peak * percent / 100, MemoryCapOptions().min_bytes(256));
  EXPECT_TRUE(want == long_step(layers));
  EXPECT_GT(cap.stats().recomputes, layers / 2);
  std::cout << fmt::format("{} layers, plain peak {}, {} %: {} evictions, {} recomputes, {} ms choosing\n", layers,
                           peak, percent, cap.stats().evictions, cap.stats().recomputes, cap.stats().policy_ms);
}

TEST_F(CapTraining, AStepOfManyOperators) { expect_long_step(1000, 20); }

TEST_F(CapTraining, AStepOfAHundredThousandOperators) { expect_long_step(12500, 20); }

}  // namespace
}  // namespace refrain_test
