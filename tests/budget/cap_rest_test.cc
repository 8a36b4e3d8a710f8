#include "evict/rest.h"

#include <thread>

#include "refrain/checkpoint.h"
#include "refrain/memory_budget.h"
#include "tests/budget/cap_support.h"

/// Caps with room to spare, which record nothing until a step rises above those before it.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::MemoryCap;
using refrain::MemoryCapOptions;
using refrain::MemoryLimit;

Bytes current() { return refrain::memory_stats().current; }

class CapRestTest : public testing::Test {
 protected:
  CapRestTest() {
    refrain::install_memory_tracking();
    refrain::tape::set_rest_rule({});
    torch::manual_seed(1);
    for (int i = 0; i < 6; ++i) layers_.emplace_back(32, 32);
    const refrain::MemoryScope memory;
    gradients(64);
    rise_ = memory.peak();
    forget_gradients();
  }
  ~CapRestTest() override { refrain::tape::set_rest_rule({.steps = refrain::tape::RestRule::kNever}); }

  void forget_gradients() {
    for (auto& layer : layers_) layer->zero_grad();
  }

  /// Forward and backward of `rows` examples.
  std::string gradients(int64_t rows) {
    forget_gradients();
    auto x = torch::sin(torch::arange(rows * 32, torch::kFloat)).view({rows, 32});
    for (auto& layer : layers_) x = torch::gelu(layer->forward(x)).mul(1.5);
    x.pow(2).mean().backward();
    std::string all;
    for (auto& layer : layers_) all += bits_of(layer->weight.grad()) + bits_of(layer->bias.grad());
    return all;
  }

  /// Runs under a limit that is `times` what a step of 64 rows rises.
  Bytes limit(double times) const { return current() + static_cast<Bytes>(times * static_cast<double>(rise_)); }

  static int64_t recorded() { return refrain::tape_stats().recorded_ops; }

  std::vector<torch::nn::Linear> layers_;
  Bytes rise_ = 0;
};

TEST_F(CapRestTest, RecordsNothingAfterThreeStepsWithRoom) {
  const auto expected = gradients(64);
  forget_gradients();
  const MemoryCap cap(limit(2.0));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(gradients(64), expected);
  EXPECT_EQ(cap.stats().unrecorded_steps, 0);
  const auto before = recorded();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(gradients(64), expected);
  EXPECT_EQ(cap.stats().unrecorded_steps, 4);
  EXPECT_EQ(recorded(), before);
}

TEST_F(CapRestTest, RecordsWhereThereIsLittleRoom) {
  const MemoryCap cap(limit(1.7));
  for (int i = 0; i < 6; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 0);
}

// As of `torch.func` inside of a step: each of them ends one.
TEST_F(CapRestTest, SmallBackwardsNearTheLimitDoNotCount) {
  const auto expected = gradients(64);
  forget_gradients();
  const auto others = torch::empty({rise_ / 2});  // two rises
  const MemoryCap cap(limit(0.7), every_byte());
  for (int step = 0; step < 3; ++step) {
    for (int i = 0; i < 5; ++i) torch::ones({4}, torch::requires_grad()).mul(2).sum().backward();
    EXPECT_EQ(gradients(64), expected);
  }
  EXPECT_EQ(cap.stats().unrecorded_steps, 0);
  EXPECT_GT(cap.stats().evictions, 0);
}

TEST_F(CapRestTest, RecordsAlwaysIfAsked) {
  const MemoryCap cap(limit(4.0), MemoryCapOptions().always_record(true));
  for (int i = 0; i < 6; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 0);
}

TEST_F(CapRestTest, WakesForALargerStepAndKeepsTheLimit) {
  const auto expected = gradients(180);
  forget_gradients();
  const Bytes most = limit(2.0);
  const MemoryCap cap(most, every_byte());
  for (int i = 0; i < 5; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
  refrain::reset_peak_memory();
  EXPECT_EQ(gradients(180), expected);
  EXPECT_LE(refrain::memory_stats().peak, most);
  EXPECT_GT(cap.stats().evictions, 0);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
  gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
}

TEST_F(CapRestTest, WaitsTwiceAsLongAfterItWasWoken) {
  const MemoryCap cap(limit(8.0));
  for (int i = 0; i < 4; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  gradients(128);  // wakes it: the first of six
  for (int i = 0; i < 5; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
}

TEST_F(CapRestTest, RefusesWhatDoesNotFitAndRecordsTheNextTime) {
  const auto expected = gradients(400);
  forget_gradients();
  const Bytes most = limit(2.6);
  const MemoryCap cap(most, every_byte());
  for (int i = 0; i < 5; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
  refrain::reset_peak_memory();
  bool was_refused = false;
  try {
    gradients(400);
  } catch (const refrain::OutOfMemory&) {
    was_refused = true;
  }
  EXPECT_LE(refrain::memory_stats().peak, most);
  if (was_refused) {
    EXPECT_EQ(gradients(400), expected);  // recorded from its beginning
  }
  EXPECT_LE(refrain::memory_stats().peak, most);
}

TEST_F(CapRestTest, WakesForALowerLimit) {
  const auto expected = gradients(64);
  forget_gradients();
  const MemoryCap cap(limit(4.0), every_byte());
  for (int i = 0; i < 5; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
  const Bytes most = limit(0.7);
  const MemoryLimit lower(most);
  refrain::reset_peak_memory();
  EXPECT_EQ(gradients(64), expected);
  EXPECT_LE(refrain::memory_stats().peak, most);
  EXPECT_GT(cap.stats().evictions, 0);
}

TEST_F(CapRestTest, WakesForACapInside) {
  const auto expected = gradients(64);
  forget_gradients();
  const MemoryCap cap(limit(4.0));
  for (int i = 0; i < 5; ++i) gradients(64);
  forget_gradients();
  {
    const MemoryCap inside(limit(0.7), every_byte());
    EXPECT_EQ(gradients(64), expected);
    EXPECT_GT(inside.stats().evictions, 0);
  }
  EXPECT_EQ(gradients(64), expected);
}

TEST_F(CapRestTest, WakesForABudgetAndAProfile) {
  const MemoryCap cap(limit(8.0));
  for (int i = 0; i < 5; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
  const auto expected = gradients(64);
  refrain::MemoryBudget budget(refrain::Budget::fraction(0.3));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(gradients(64), expected);
  EXPECT_EQ(budget.stats().traced_steps, 1);
  EXPECT_GE(budget.stats().planned_steps, 4);
}

// Its cap rests from its start, as it did for the budget before, until the budget is there to say that it has something
// to do.
TEST_F(CapRestTest, ABudgetAfterOneThatRestedWakes) {
  const auto expected = gradients(64);
  forget_gradients();
  {
    refrain::MemoryBudget budget(refrain::Budget::fraction(1.0));
    for (int i = 0; i < 5; ++i) gradients(64);
    EXPECT_EQ(budget.stats().unrecorded_steps, 2);
    forget_gradients();
  }
  refrain::MemoryBudget budget(refrain::Budget::fraction(0.5));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(gradients(64), expected);
  EXPECT_EQ(budget.stats().unrecorded_steps, 0);
  EXPECT_EQ(budget.stats().traced_steps, 1);
  EXPECT_EQ(budget.stats().planned_steps, 3);
}

TEST_F(CapRestTest, ABudgetThatHasNothingToDoRests) {
  const auto expected = gradients(64), larger = gradients(180);
  forget_gradients();
  for (const bool in_bytes : {false, true}) {
    refrain::MemoryBudget budget(in_bytes ? refrain::Budget::bytes(limit(4.0)) : refrain::Budget::fraction(1.0));
    for (int i = 0; i < 5; ++i) EXPECT_EQ(gradients(64), expected);
    EXPECT_EQ(budget.stats().traced_steps, 1);
    EXPECT_EQ(budget.stats().planned_steps, 2);
    const auto before = recorded();
    EXPECT_EQ(gradients(64), expected);
    EXPECT_EQ(recorded(), before);
    EXPECT_EQ(budget.stats().planned_steps, 2);
    EXPECT_EQ(budget.stats().unrecorded_steps, 3);
    EXPECT_EQ(gradients(180), larger);  // wakes it
    EXPECT_GT(recorded(), before);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(gradients(180), larger);
    EXPECT_EQ(budget.stats().traced_steps, 2);
    EXPECT_EQ(budget.stats().planned_steps, 3);
    EXPECT_EQ(budget.stats().mismatched_steps, 0);
    forget_gradients();
  }
}

TEST_F(CapRestTest, ABudgetOfAPlanWithNothingToDoRests) {
  const auto expected = gradients(64);
  forget_gradients();
  const auto plan = refrain::plan_step(refrain::profile([&] { gradients(64); }), refrain::Budget::fraction(1.0));
  int64_t unrecorded = 0;
  for (int i = 0; i < 6; ++i) {
    const refrain::MemoryBudget budget(plan);  // one for each step
    EXPECT_EQ(gradients(64), expected);
    EXPECT_EQ(budget.stats().planned_steps + budget.stats().unrecorded_steps, 1);
    unrecorded += budget.stats().unrecorded_steps;
  }
  EXPECT_EQ(unrecorded, 3);
}

// Its steps are full of the operator that they begin with.
TEST_F(CapRestTest, ABudgetThatIsWokenInAStepFollowsTheNextOne) {
  const auto input = torch::ones({64, 256});
  const auto step = [&](int length) {
    auto weight = torch::full({256}, 0.5).requires_grad_();
    auto x = input.sin();
    for (int i = 0; i < length; ++i) x = (x * weight).sin();
    x.sum().backward();
    return bits_of(weight.grad());
  };
  const auto expected = step(8), longer = step(40);
  refrain::MemoryBudget budget(refrain::Budget::fraction(1.0));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(step(8), expected);
  EXPECT_EQ(budget.stats().unrecorded_steps, 2);
  EXPECT_EQ(step(40), longer);  // wakes it
  EXPECT_EQ(budget.stats().mismatched_steps, 0) << budget.stats().first_mismatch;
  EXPECT_EQ(budget.stats().traced_steps, 1);
  EXPECT_EQ(budget.stats().planned_steps, 2);
  EXPECT_EQ(step(8), expected);
  EXPECT_EQ(budget.stats().mismatched_steps, 0) << budget.stats().first_mismatch;
  EXPECT_EQ(budget.stats().planned_steps, 3);
}

TEST_F(CapRestTest, ABudgetOfAPlanWithSomethingToDoDoesNotRest) {
  const auto expected = gradients(64);
  forget_gradients();
  const auto plan = refrain::plan_step(refrain::profile([&] { gradients(64); }), refrain::Budget::fraction(0.5));
  refrain::MemoryBudget budget(plan);
  for (int i = 0; i < 6; ++i) {
    forget_gradients();
    refrain::reset_peak_memory();
    EXPECT_EQ(gradients(64), expected);
    EXPECT_LE(refrain::memory_stats().peak, plan.peak());
  }
  EXPECT_EQ(budget.stats().unrecorded_steps, 0);
  EXPECT_EQ(budget.stats().planned_steps, 6) << budget.stats().first_mismatch;
}

TEST_F(CapRestTest, ABudgetWithSomethingToDoDoesNotRest) {
  refrain::MemoryBudget budget(refrain::Budget::fraction(0.9));
  for (int i = 0; i < 5; ++i) gradients(64);
  const auto before = recorded();
  gradients(64);
  EXPECT_GT(recorded(), before);
  EXPECT_EQ(budget.stats().planned_steps, 5);
}

TEST_F(CapRestTest, GoesOnUnderTheNextCapOfTheSameLimit) {
  const Bytes most = limit(3.0);
  for (int i = 0; i < 3; ++i) {
    forget_gradients();
    const MemoryCap cap(most);
    gradients(64);
    EXPECT_EQ(cap.stats().unrecorded_steps, 0);
  }
  forget_gradients();
  {
    const MemoryCap cap(most);
    gradients(64);
    EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  }
  forget_gradients();
  const MemoryCap other(2 * most);
  gradients(64);
  EXPECT_EQ(other.stats().unrecorded_steps, 0);
}

TEST_F(CapRestTest, WhatWasMadeMeanwhileStaysWhereItIs) {
  const MemoryCap cap(limit(4.0), every_byte());
  for (int i = 0; i < 4; ++i) gradients(64);
  auto made = torch::ones({64});
  const auto* const pointer = made.const_data_ptr<float>();
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  const auto large = torch::empty({rise_ / 2});  // twice what a step rises: wakes it
  made.add_(1);
  const auto copy = made * 3;
  made.mul_(2);
  const auto other = torch::ones({64}).mul(5);
  evict_all();
  EXPECT_EQ(pointer, made.const_data_ptr<float>());
  EXPECT_EQ(pointer[63], 4.0F);
  EXPECT_GT(evicted_bytes(), 0);
  EXPECT_EQ(bits_of(other), bits_of(torch::full({64}, 5.0F)));
  EXPECT_EQ(bits_of(copy), bits_of(torch::full({64}, 6.0F)));
}

TEST_F(CapRestTest, WhatWasRecordedBeforeMayBeWrittenMeanwhile) {
  const MemoryCap cap(limit(2.0), every_byte());
  auto made = torch::ones({64}).mul(2);
  auto child = made.mul(3);
  for (int i = 0; i < 4; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  made.zero_();
  child.data().fill_(7);  // without a version
  refrain::tape::wake();
  const auto later = child + made;
  evict_all();
  EXPECT_EQ(bits_of(child), bits_of(torch::full({64}, 7.0F)));
  EXPECT_EQ(bits_of(later), bits_of(torch::full({64}, 7.0F)));
}

TEST_F(CapRestTest, WhatWasRecordedBeforeMayBeWrittenMeanwhileWithoutAVersion) {
  const std::vector<int64_t> sizes{2048};  // worth its history beyond a step
  const MemoryCap cap(limit(3.0), every_byte());
  const auto made = torch::ones(sizes).mul(2);
  const auto child = made.mul(3);
  EXPECT_GT(refrain::tape_stats().live_ops, 0);
  for (int i = 0; i < 4; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  EXPECT_EQ(refrain::tape_stats().live_ops, 0);
  child.data().fill_(7);
  refrain::tape::wake();
  const auto later = child + made;
  evict_all();
  EXPECT_EQ(bits_of(child), bits_of(torch::full(sizes, 7.0F)));
  EXPECT_EQ(bits_of(later), bits_of(torch::full(sizes, 9.0F)));
}

TEST_F(CapRestTest, ThreadsOfTheCapAreRecordedAfterwards) {
  const MemoryCap cap(limit(2.0), every_byte());
  for (int i = 0; i < 4; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  std::thread([&] {
    const refrain::CapThreadScope scope;
    const auto x = torch::ones({64}).mul(2);
    const auto before = recorded();
    refrain::tape::wake();
    const auto y = x.mul(3);
    EXPECT_GT(recorded(), before);
    evict_all();
    EXPECT_EQ(bits_of(y), bits_of(torch::full({64}, 6.0F)));
  }).join();
}

TEST_F(CapRestTest, RegionsAreRecordedMeanwhile) {
  const auto expected = gradients(64);
  forget_gradients();
  const MemoryCap cap(limit(2.0));
  for (int i = 0; i < 4; ++i) gradients(64);
  EXPECT_EQ(cap.stats().unrecorded_steps, 1);
  const auto before = recorded();
  std::string all;
  forget_gradients();
  auto x = torch::sin(torch::arange(64 * 32, torch::kFloat)).view({64, 32});
  for (auto& layer : layers_) x = refrain::checkpoint([&] { return torch::gelu(layer->forward(x)).mul(1.5); });
  x.pow(2).mean().backward();
  for (auto& layer : layers_) all += bits_of(layer->weight.grad()) + bits_of(layer->bias.grad());
  EXPECT_EQ(all, expected);
  EXPECT_GT(recorded(), before);
  EXPECT_EQ(cap.stats().unrecorded_steps, 2);
}

}  // namespace
}  // namespace refrain_test
