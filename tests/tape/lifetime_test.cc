// Rules 12, 13 and 14: nothing recurses, leaks or dies too early; threads; when the tape is off or refuses.
#include <ATen/functorch/DynamicLayer.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <atomic>
#include <thread>

#include "tests/tape/support.h"
#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using refrain::checkpoint;
using refrain::InvalidArgument;
using refrain::tape_stats;
using Teardown = TapeTest;
using Threads = TapeTest;
using Off = TapeTest;

// ---- Rule 12 ----------------------------------------------------------------------------------------------------

Tensor million_operators(const Tensor& x) {
  Tensor t = x;
  for (int i = 0; i < 1'000'000; ++i) t = t + 1e-3;
  return t.sin();
}

TEST_F(Teardown, MillionChainedOperatorsReplayed) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  {
    Tensor y = checkpoint(million_operators, x);
    EXPECT_GE(tape_stats().live_ops, 1'000'000);
    y.sum().backward();
  }
  EXPECT_GE(tape_stats().replayed_ops, 1'000'000);
  EXPECT_LE(tape_stats().replayed_ops, 1'000'002);
  Tensor t = x.detach().clone();
  for (int i = 0; i < 1'000'000; ++i) t.add_(1e-3);
  expect_bit_equal(t.cos(), x.grad());
}

TEST_F(Teardown, MillionChainedOperatorsDropped) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  { Tensor y = checkpoint(million_operators, x); }
  EXPECT_EQ(tape_stats().replayed_ops, 0);
}

TEST_F(Teardown, MillionOperatorsInPlace) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  checkpoint([&] {
    torch::NoGradGuard no_grad;
    Tensor t = x * 1;
    for (int i = 0; i < 1'000'000; ++i) t.add_(1e-3);
    torch::AutoGradMode with_grad(true);
    return (x * t).sin();
  })
      .sum()
      .backward();
  EXPECT_GE(tape_stats().replayed_ops, 1'000'000);
}

TEST_F(Teardown, FiveThousandJoinedRegions) {
  expect_same([](Trial& run) {
    Tensor t = run.param({4});
    for (int i = 0; i < 5000; ++i) t = run.region([&] { return t.mul(1.001).sin().add(t); });
    return t.sum();
  });
}

TEST_F(Teardown, FiveThousandJoinedRegionsDropped) {
  Tensor t = torch::ones({4}, torch::requires_grad());
  for (int i = 0; i < 5000; ++i) t = checkpoint([&] { return t.mul(1.001).sin().add(t); });
}

// Each region reads a value of the one before that no tensor of the user holds.
TEST_F(Teardown, FiveThousandRegionsJoinedByRecomputedValues) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4}), t = x, loss = torch::zeros({4});
    for (int i = 0; i < 5000; ++i) {
      loss = loss + run.region([&] {
        t = t.detach().mul(1.0001);
        return (x * t).sin();
      });
    }
    return loss.sum();
  });
}

TEST_F(Teardown, HundredThousandRegionsWithoutBackward) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  refrain::MemoryScope memory;
  int64_t early = 0;
  for (int i = 0; i < 100'000; ++i) {
    Tensor y = checkpoint([&] { return x.exp().sin(); });
    y.reset();
    if (i == 1000) early = tape_stats().live_values;
    if (i % 1000 == 0) {
      ASSERT_EQ(tape_stats().live_slots, 0);
      ASSERT_EQ(tape_stats().live_regions, 0);
      ASSERT_EQ(tape_stats().live_ops, 0);
    }
  }
  EXPECT_LE(tape_stats().live_values, early);
  EXPECT_LT(memory.current(), 4096);
}

TEST_F(Teardown, TruncatedBackpropagationStaysFlat) {
  Tensor w = torch::eye(8).mul_(0.9).requires_grad_();
  Tensor h = torch::ones({1, 8});
  refrain::MemoryScope memory;
  Live early{};
  int64_t early_bytes = 0;
  for (int step = 0; step < 3000; ++step) {
    h = checkpoint([&] { return h.mm(w).tanh() + 0.1; });
    if (step % 3 == 2) {
      h.sum().backward();
      w.mutable_grad().reset();
      h = h.detach();
    }
    if (step == 299) {
      early = live();
      early_bytes = memory.current();
    }
  }
  EXPECT_LE(live().ops, early.ops);
  EXPECT_LE(live().slots, early.slots);
  EXPECT_LE(live().values, early.values);
  EXPECT_LE(live().regions, early.regions);
  EXPECT_LE(memory.current(), early_bytes);
}

// The state is carried on and never backpropagated: its history must not pile up.
TEST_F(Teardown, DetachedStateWithoutBackwardStaysFlat) {
  Tensor w = torch::eye(8).mul_(0.9).requires_grad_();
  Tensor h = torch::ones({1, 8});
  Live early{};
  for (int step = 0; step < 3000; ++step) {
    h = checkpoint([&] { return h.mm(w).tanh(); }).detach();
    if (step == 299) early = live();
  }
  EXPECT_LE(live().ops, early.ops);
  EXPECT_LE(live().values, early.values);
  EXPECT_LE(live().slots, early.slots);
}

TEST_F(Teardown, ExponentialMovingAverageInsideRegionsStaysFlat) {
  Tensor w = torch::ones({4}, torch::requires_grad()), average = torch::zeros({4});
  Live early{};
  for (int step = 0; step < 2000; ++step) {
    checkpoint([&] {
      Tensor y = w.exp();
      average.mul_(0.9).add_(y.detach(), 0.1);
      return y.sin();
    })
        .sum()
        .backward();
    if (step == 199) early = live();
  }
  EXPECT_LE(live().ops, early.ops);
  EXPECT_LE(live().values, early.values);
}

TEST_F(Teardown, NothingAliveAndNoBytesHeldAfterAStep) {
  Tensor x = torch::ones({1 << 16}, torch::requires_grad());
  refrain::MemoryScope memory;
  for (int i = 0; i < 10; ++i) {
    checkpoint([&] { return at::dropout(x.exp(), 0.5, true).sin(); }).sum().backward();
    x.mutable_grad().reset();
    EXPECT_EQ(live(), Live{}) << "after step " << i;
    EXPECT_EQ(memory.current(), 0) << "after step " << i;
  }
}

// ---- Rule 13 ----------------------------------------------------------------------------------------------------

Tensor small_net(const Tensor& x, const Tensor& w) { return x.mm(w).exp().sin().mm(w).tanh(); }

TEST_F(Threads, ForwardAndBackwardInSeveral) {
  Tensor w = torch::eye(8).mul_(0.3);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; ++id) {
    threads.emplace_back([&, id] {
      for (int i = 0; i < 200; ++i) {
        Tensor x = torch::full({4, 8}, 0.01 * (i + id), torch::requires_grad());
        Tensor expected = torch::autograd::grad({small_net(x, w).sum()}, {x})[0];
        checkpoint(small_net, x, w).sum().backward();
        if (!expected.equal(x.grad())) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Threads, BackwardOnAnotherThreadThanForward) {
  Tensor w = torch::eye(8).mul_(0.3);
  for (int i = 0; i < 50; ++i) {
    Tensor x = torch::full({4, 8}, 0.01 * i, torch::requires_grad()), y;
    Tensor expected = torch::autograd::grad({small_net(x, w).sum()}, {x})[0];
    std::thread([&] { y = checkpoint(small_net, x, w).sum(); }).join();
    std::thread([&] { y.backward(); }).join();
    expect_bit_equal(expected, x.grad());
    std::thread([&] { y.reset(); }).join();
  }
}

TEST_F(Threads, TwoRegionsOfTwoThreadsJoinedInOneBackward) {
  Tensor x = torch::full({4, 8}, 0.3, torch::requires_grad()), w = torch::eye(8).mul_(0.3), a, b;
  Tensor expected = torch::autograd::grad({(small_net(x, w) * small_net(x * 2, w)).sum()}, {x})[0];
  std::thread first([&] { a = checkpoint(small_net, x, w); });
  std::thread second([&] { b = checkpoint([&] { return small_net(x * 2, w); }); });
  first.join();
  second.join();
  (a * b).sum().backward();
  EXPECT_TRUE(torch::allclose(expected, x.grad()));
  a.reset();
  b.reset();
}

// Through two nodes: a node of autograd's is one thread's at a time.
TEST_F(Threads, ABackwardWaitsWhileAnotherReplaysTheSameRegion) {
  Tensor x = torch::full({4}, 0.3, torch::requires_grad()), cos;
  const auto region = [&] {
    Tensor product = x * unary("refrain_test::slow", x.detach());
    cos = product.cos();
    return product.sin();
  };
  const auto gradient = [&](const Tensor& y) {
    return torch::autograd::grad({y.sum()}, {x}, {}, /*retain_graph=*/true)[0];
  };
  Tensor sin = region();
  const std::array<Tensor, 2> expected{gradient(sin), gradient(cos)};
  sin = checkpoint(region);
  std::array<Tensor, 2> found;
  const int before = slow_calls;
  std::thread other([&] { found[0] = gradient(sin); });
  while (slow_calls == before) std::this_thread::yield();
  found[1] = gradient(cos);
  other.join();
  expect_bit_equal(expected[0], found[0]);
  expect_bit_equal(expected[1], found[1]);
}

// Replays take the generator, recordings take the tape: in one order only, or this hangs.
TEST_F(Threads, RandomForwardWhileAnotherReplays) {
  std::atomic<bool> stop = false;
  std::thread draws([&] {
    Tensor x = torch::ones({32}, torch::requires_grad());
    while (!stop) checkpoint([&] { return at::dropout(x.exp(), 0.5, true).sin(); });
  });
  for (int i = 0; i < 500; ++i) {
    Tensor x = torch::ones({32}, torch::requires_grad());
    Tensor y = checkpoint([&] { return at::dropout(x.exp(), 0.5, true); });
    y.sum().backward();
    ASSERT_TRUE(x.grad().equal(y.detach())) << "step " << i;
  }
  stop = true;
  draws.join();
}

TEST_F(Threads, OneThreadRecordsOthersRunPlain) {
  const int64_t before = tape_stats().recorded_ops;
  Tensor x = torch::ones({32}, torch::requires_grad());
  Tensor y = checkpoint([&] {
    std::thread([&] {
      for (int i = 0; i < 100; ++i) torch::ones({4}).exp();
    }).join();
    return x.exp().sin();
  });
  EXPECT_LT(tape_stats().recorded_ops - before, 50);
  y.sum().backward();
}

TEST_F(Threads, LargeKernelsWithWorkers) {  // kernels allocate from OpenMP workers
  Tensor w = torch::randn({64, 64});
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int id = 0; id < 2; ++id) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        Tensor x = torch::full({512, 64}, 0.01 * i, torch::requires_grad());
        Tensor expected = torch::autograd::grad({small_net(x, w).sum()}, {x})[0];
        checkpoint(small_net, x, w).sum().backward();
        if (!expected.equal(x.grad())) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

// ---- Rule 14 ----------------------------------------------------------------------------------------------------

TEST_F(Off, GradientsDisabledIsAPlainCall) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  torch::NoGradGuard no_grad;
  Tensor y = checkpoint([&] { return x.exp().sin(); });
  expect_bit_equal(x.exp().sin(), y);
  EXPECT_EQ(tape_stats().recorded_ops, 0);
  EXPECT_EQ(live(), Live{});
}

TEST_F(Off, NothingIsRecordedOutsideRegions) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  {
    Tensor y = checkpoint([&] { return x.exp().sin(); });
  }
  refrain::reset_tape_counters();
  x.exp().sin().sum().backward();
  EXPECT_EQ(tape_stats().recorded_ops, 0);
}

TEST_F(Off, InferenceModeIsRefusedByName) {
  Tensor x = torch::ones({4});
  std::string text;
  {
    c10::InferenceMode inference;
    EXPECT_TRUE(checkpoint([&] { return x.exp(); }).is_inference());  // nothing is saved: a plain call
    at::AutoGradMode grad(true);
    text = message_of<InvalidArgument>([&] { checkpoint([&] { return x.exp(); }); });
  }
  EXPECT_NE(text.find("inference mode"), std::string::npos) << text;
}

// An inference tensor as input has no version counter; plain accepts it where autograd need not save it.
TEST_F(Off, InferenceTensorAsInput) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), frozen;
    {
      c10::InferenceMode inference;
      frozen = torch::full({4, 4}, 0.5);
    }
    return run.region([&] { return (x.exp() + frozen).sin(); }).sum();
  });
}

TEST_F(Off, ForwardModeDifferentiationIsRefusedByName) {
  const uint64_t level = torch::autograd::forward_ad::enter_dual_level();
  Tensor x = torch::ones({4}, torch::requires_grad());
  const std::string text = message_of<InvalidArgument>([&] { checkpoint([&] { return x.exp(); }); });
  torch::autograd::forward_ad::exit_dual_level(level);
  EXPECT_NE(text.find("forward-mode AD"), std::string::npos) << text;
  checkpoint([&] { return x.exp(); }).sum().backward();
}

TEST_F(Off, VmapIsRefusedByName) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  at::functorch::initAndPushDynamicLayer(at::functorch::TransformType::Vmap, c10::SymInt(3),
                                         at::functorch::RandomnessType::Error);
  const std::string text = message_of<InvalidArgument>([&] { checkpoint([&] { return x.exp(); }); });
  at::functorch::popDynamicLayerAndDeleteMetadata();
  EXPECT_NE(text.find("vmap"), std::string::npos) << text;
}

TEST_F(Off, ExceptionOfTheFunctionPassesAndLeavesNothing) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  EXPECT_THROW(checkpoint([&]() -> Tensor {
                 Tensor y = x.exp().sin();
                 throw std::out_of_range("mine");
               }),
               std::out_of_range);
  EXPECT_EQ(live(), Live{});
  const int64_t recorded = tape_stats().recorded_ops;
  x.exp();
  EXPECT_EQ(tape_stats().recorded_ops, recorded) << "still recording after the exception";
  checkpoint([&] { return x.exp().sin(); }).sum().backward();
  expect_bit_equal((x.exp().cos() * x.exp()).detach(), x.grad());
}

TEST_F(Off, ExceptionInAnInnerRegionCaughtByTheOuter) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return run
        .region([&] {
          Tensor y = x.exp();
          try {
            run.region([&]() -> Tensor {
              y = y.sin();
              throw 42;
            });
          } catch (int) {
          }
          return y.cos();
        })
        .sum();
  });
}

TEST_F(Off, ExceptionInsideBackwardLeavesAUsableTape) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  Tensor y = checkpoint([&] { return x.exp().sin(); });
  y.register_hook([](const Tensor&) -> Tensor { throw std::runtime_error("hook"); });
  EXPECT_THROW(y.sum().backward({}, true), std::exception);
  flush_engine();
  y.reset();
  checkpoint([&] { return x.exp().sin(); }).sum().backward();
  expect_bit_equal((x.exp().cos() * x.exp()).detach(), x.grad());
}

TEST_F(Off, SecondBackwardWithoutRetainIsPlainsError) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  Tensor loss = checkpoint([&] { return x.exp().sin(); }).sum();
  loss.backward();
  EXPECT_THROW(loss.backward(), c10::Error);
}

TEST_F(Off, NothingRequiresGrad) {
  Tensor x = torch::ones({4});
  Tensor y = checkpoint([&] { return x.exp().sin(); });
  EXPECT_FALSE(y.requires_grad());
  EXPECT_EQ(tape_stats().live_slots, 0);
}

TEST(SelfTest, Passes) { EXPECT_NO_THROW(refrain::self_test()); }

TEST(SelfTest, PassesWhereCheckpointingIsOff) {
  const bool enabled = refrain::set_checkpointing_enabled(false);
  const refrain::NoCheckpointGuard off_here;
  const torch::NoGradGuard no_grad;
  EXPECT_NO_THROW(refrain::self_test());
  EXPECT_FALSE(torch::GradMode::is_enabled());
  EXPECT_FALSE(refrain::set_checkpointing_enabled(enabled));
  refrain::set_checkpointing_enabled(enabled);
}

// The last test of the file: it leaves the tape as it should be when the process ends.
// Built before anything of the library that is made on first use, so destroyed after it.
Tensor outlives_the_library;

TEST(AtExit, GraphHeldByAStatic) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  outlives_the_library = checkpoint([&] { return at::dropout(x.exp(), 0.5, true).sin(); });
  EXPECT_GT(tape_stats().live_slots, 0);
}

}  // namespace
}  // namespace refrain_test
