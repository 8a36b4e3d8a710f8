#include "refrain/least_limit.h"

#include "budget/step_state.h"
#include "refrain/torch_error.h"
#include "tests/budget/cap_support.h"

/// The least limit of a step, and what limits above it cost.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::InvalidArgument;
using refrain::least_limit;
using refrain::LeastLimitOptions;
using refrain::MemoryCap;

constexpr Bytes kTensor = 256 * 256 * 4;

// Twelve tensors of `kTensor` bytes are alive at the end of forward.
struct Chain {
  Tensor x = torch::randn({256, 256}), w = torch::randn({256, 256}).div_(16).requires_grad_();
  int runs = 0;

  void step() {
    ++runs;
    w.mutable_grad() = Tensor();
    auto h = x;
    for (int i = 0; i < 6; ++i) h = h.mm(w).sin();
    h.sum().backward();
  }
};

class LeastLimitTest : public TapeTest {
 protected:
  void SetUp() override {
    refrain::install_memory_tracking();
    TapeTest::SetUp();
  }
};

TEST_F(LeastLimitTest, HoldsAndIsFarBelowThePeak) {
  Chain chain;
  const auto found = least_limit([&] { chain.step(); }, LeastLimitOptions().tolerance(0.02).runs(1));
  EXPECT_EQ(found.steps, chain.runs);
  EXPECT_GE(found.peak - found.level, 12 * kTensor);
  EXPECT_LT(found.limit - found.level, 8 * kTensor);
  EXPECT_GE(found.limit - found.level, 3 * kTensor) << "an operator alone has two inputs and an output";
  EXPECT_LT(found.refused, found.limit);
  EXPECT_GE(found.refused, found.level);
  {
    const MemoryCap cap(found.limit, LeastLimitOptions().cap());
    chain.step();
    chain.step();
  }
  if (found.refused > found.level) {
    const MemoryCap cap(found.refused, LeastLimitOptions().cap());
    EXPECT_THROW((chain.step(), chain.step()), refrain::OutOfMemory);
  }
  chain.w.mutable_grad() = Tensor();
}

TEST_F(LeastLimitTest, CostsGrowTowardsIt) {
  Chain chain;
  const auto found =
      least_limit([&] { chain.step(); }, LeastLimitOptions().tolerance(0.05).multiples({1.5, 1.0, 1.2, 50.0}));
  ASSERT_EQ(found.costs.size(), 3U) << "one above the peak is left out";
  for (size_t i = 0; i < found.costs.size(); ++i) {
    const auto& cost = found.costs[i];
    if (i > 0) {
      EXPECT_GT(cost.limit, found.costs[i - 1].limit);
    }
    if (!cost.holds) continue;
    EXPECT_LE(cost.peak, cost.limit);
    EXPECT_GT(cost.peak, found.level);
    EXPECT_GT(cost.ms, 0.0);
    EXPECT_DOUBLE_EQ(cost.ratio, cost.ms / found.baseline_ms);
  }
  EXPECT_EQ(found.costs.front().limit, found.limit);
  EXPECT_TRUE(found.costs.front().holds);
  EXPECT_GT(found.costs.front().recomputes, 0);
  EXPECT_GT(found.costs.front().evictions, 0);
  EXPECT_GE(found.costs.front().recomputes, found.costs.back().recomputes);
  EXPECT_NE(found.report().find(refrain::format_bytes(found.limit)), std::string::npos);
  chain.w.mutable_grad() = Tensor();
}

TEST_F(LeastLimitTest, WhatComesToStayIsPartOfTheLevel) {
  Chain chain;
  torch::optim::SGD optimizer({chain.w}, torch::optim::SGDOptions(1e-6).momentum(0.9));
  const Bytes before = refrain::memory_stats().current;
  const auto found = least_limit(
      [&] {
        chain.step();
        optimizer.step();
      },
      LeastLimitOptions().tolerance(0.1).multiples({}).runs(1));
  EXPECT_GE(found.level - before, kTensor);
  EXPECT_TRUE(found.costs.empty());
  chain.w.mutable_grad() = Tensor();
}

TEST_F(LeastLimitTest, AStepThatCatchesTheRefusalIsNotBelieved) {
  Chain chain;
  const auto message = message_of<InvalidArgument>([&] {
    least_limit(
        [&] {
          try {
            chain.step();
          } catch (const refrain::OutOfMemory&) {
          }
        },
        LeastLimitOptions().runs(1));
  });
  EXPECT_NE(message.find("`step` caught an OutOfMemory"), std::string::npos) << message;
  chain.w.mutable_grad() = Tensor();
}

TEST_F(LeastLimitTest, OtherExceptionsPass) {
  Chain chain;
  EXPECT_THROW(least_limit([&] {
                 chain.step();
                 if (chain.runs == 3) throw std::runtime_error("mine");
               }),
               std::runtime_error);
  chain.w.mutable_grad() = Tensor();
}

TEST_F(LeastLimitTest, BadOptionsAreNamed) {
  const auto refused = [](const LeastLimitOptions& options) {
    return message_of<InvalidArgument>([&] { least_limit([] { ADD_FAILURE() << "it was run"; }, options); });
  };
  EXPECT_EQ(refused(LeastLimitOptions().tolerance(0.0)),
            "[refrain::least_limit] `tolerance` is 0, expected a fraction above 0 and below 1");
  EXPECT_EQ(refused(LeastLimitOptions().runs(0)), "[refrain::least_limit] `runs` is 0, expected at least 1");
  EXPECT_EQ(refused(LeastLimitOptions().steps(-1)), "[refrain::least_limit] `steps` is -1, expected at least 1");
  EXPECT_EQ(refused(LeastLimitOptions().multiples({0.5})),
            "[refrain::least_limit] `multiples` is 0.5, expected multiples of the lowest limit, each at least 1");
  const MemoryCap cap(kNoLimit);
  EXPECT_NE(refused(LeastLimitOptions()).find("under a limit of"), std::string::npos);
}

TEST(TraceDefect, IsNamedWithWhatToDo) {
  refrain::graph::Graph graph;
  graph.end_gap = -5;
  const refrain::StepTrace trace(
      std::make_shared<const refrain::StepTrace::State>(refrain::StepTrace::State{graph, {}}));
  const auto message = message_of<InvalidArgument>([&] { plan_step(trace, refrain::Budget::fraction(0.5)); });
  EXPECT_EQ(message.find("[refrain::plan_step] cannot plan for a step whose trace has a defect: "), 0U) << message;
  EXPECT_NE(message.find("MemoryCap"), std::string::npos) << message;
  EXPECT_NE(message.find("regions"), std::string::npos) << message;
}

}  // namespace
}  // namespace refrain_test
