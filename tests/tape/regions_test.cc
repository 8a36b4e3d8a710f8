// Rules 8 to 11: one replay pass, each operator at most once and none after the last needed; nested regions; slots read
// any number of times; values shared between regions.
#include <ATen/autocast_mode.h>

#include <thread>

#include "tests/tape/callables.h"
#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using refrain::tape_stats;
using OnePass = TapeTest;
using Nested = TapeTest;
using Slots = TapeTest;
using AcrossRegions = TapeTest;

constexpr int64_t kMega = 1 << 20;
constexpr int64_t kFloats = kMega / 4;  // one MiB

// ---- Rule 8 -----------------------------------------------------------------------------------------------------

TEST_F(OnePass, EachOperatorOnceAndNothingAfterTheLastNeeded) {
  reset_ticks();
  Trial run(true);
  Tensor x = run.param({4, 4});
  Tensor loss = run.region([&] {
                     Tensor t = x;
                     for (int i = 0; i < 5; ++i) t = tick_saving(t, i);  // saves x, t0 .. t3
                     t = t + 1;
                     return tick(t.detach(), 5) + t;
                   })
                    .sum();
  loss.backward();
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(ticks[i], 2) << "operator " << i;
  EXPECT_EQ(ticks[4], 1) << "replayed although no slot needs it";
  EXPECT_EQ(ticks[5], 1) << "replayed although no slot needs it";
  EXPECT_EQ(tape_stats().replayed_ops, 4);
  EXPECT_EQ(tape_stats().replay_passes, 1);
}

// A kernel that waits for a thread that needs the tape's lock: it must not be held, in forward or at replay.
TEST_F(OnePass, AKernelMayWaitForAThreadThatAsksTheTape) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run.region([&] { return x * unary("refrain_test::waits_for_the_tape", x.detach()); }).sum();
  });
}

TEST_F(OnePass, SharedSubexpressionOnce) {
  reset_ticks();
  const Counts n = expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = tick_saving(x, 0);
          return t.sin() * t.cos() + t.exp() * t;
        })
        .sum();
  });
  EXPECT_EQ(ticks[0], 3) << "plain, forward, replay";
  EXPECT_EQ(n.replay_passes, 1);
}

TEST_F(OnePass, OnlyWhatPendingSlotsNeed) {
  reset_ticks();
  Trial run(true);
  Tensor x = run.param({4, 4});
  Tensor loss = run.region([&] {
                     Tensor unused = tick_saving(tick_saving(x, 0), 1);  // its graph dies before backward
                     Tensor cheap = tick(x, 2) + 1;                      // no gradient, and nobody saves it
                     return tick_saving(tick_saving(x, 3), 4) + cheap;
                   })
                    .sum();
  loss.backward();
  EXPECT_EQ(ticks[0], 1);
  EXPECT_EQ(ticks[1], 1);
  EXPECT_EQ(ticks[2], 1);
  EXPECT_EQ(ticks[3], 2);
  EXPECT_EQ(ticks[4], 1);
}

TEST_F(OnePass, LeavesNeedNoReplay) {
  const Counts n = expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run.region([&] { return x.mm(w); }).sum();
  });
  EXPECT_EQ(n.replayed, 0);
}

TEST_F(OnePass, ALiveValueIsNotReplayed) {
  reset_ticks();
  Trial run(true);
  Tensor x = run.param({4, 4});
  Tensor held;
  Tensor loss = run.region([&] {
                     held = tick_saving(x, 0);
                     return held.sin();
                   })
                    .sum();
  loss.backward();
  EXPECT_EQ(ticks[0], 1);
  held.reset();
}

TEST_F(OnePass, MultipleOutputsFromOneReplay) {
  expect_same([](Trial& run) {
    Tensor x = run.param({6, 6});
    return run.region([&] {
      auto parts = (x * 2).exp().split(2, 0);
      auto [values, indices] = x.exp().sort(1);
      auto [top, where] = values.topk(3, 1);
      Tensor sum = parts[0].sin().sum() + parts[2].cos().sum() * values.sin().sum() + top.sin().sum();
      auto chunks = at::unbind(values * 2);
      auto [q, r] = at::linalg_qr(x + torch::eye(6) * 5);
      return sum + chunks[1].sin().sum() + at::cat({q, r}).sin().sum() +
             x.index({where, indices.narrow(1, 0, 3)}).sum();
    });
  });
}

TEST_F(OnePass, NothingIsHeldAfterForward) {
  Trial run(true);
  Tensor x = run.param({kFloats});
  refrain::MemoryScope memory;
  Tensor loss = run.region([&] {
    Tensor t = x;
    for (int i = 0; i < 20; ++i) t = t.sin();
    return t.sum();
  });
  EXPECT_LT(memory.current(), kMega / 4);
  loss.backward();
}

TEST_F(OnePass, TemporariesDieAtTheirLastUse) {
  Trial run(true);
  Tensor x = run.param({kFloats});
  Tensor loss = run.region([&] {
                     Tensor t = x;
                     for (int i = 0; i < 40; ++i) t = t + 1;
                     return t.sin();
                   })
                    .sum();
  refrain::MemoryScope memory;
  loss.backward();
  EXPECT_LT(memory.peak(), 6 * kMega);  // 40 if they all lived
}

TEST_F(OnePass, FilledAndUnreadIsDroppedAtTheEndOfTheGraphTask) {
  Trial run(true);
  Tensor x = run.param({kFloats}), w = run.param({kFloats});
  Tensor want_w = torch::autograd::grad({w.exp().sin().sum()}, {w})[0];
  Tensor loss = run.region([&] { return x.exp().sin().sum() + w.exp().sin().sum(); });
  refrain::MemoryScope memory;
  { Tensor gradient = torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true)[0]; }
  EXPECT_LT(memory.current(), kMega / 4) << "bytes that the task never read are still held";
  Tensor gradient = torch::autograd::grad({loss}, {w})[0];
  expect_bit_equal(want_w, gradient);
}

TEST_F(OnePass, RetainedGraphHoldsNoBytesBetweenBackwards) {
  Trial run(true);
  Tensor x = run.param({kFloats});
  Tensor loss = run.region([&] { return x.exp().sin().cos().sum(); });
  refrain::MemoryScope memory;
  for (int i = 0; i < 3; ++i) {
    loss.backward({}, /*retain_graph=*/true);
    x.mutable_grad().reset();
    EXPECT_LT(memory.current(), kMega / 4) << "after backward " << i;
  }
}

// Kernels that call operators (tick calls mul) are replayed as one; in an open region nothing of that is recorded.
TEST_F(OnePass, ReplayInsideAnOpenRegionIsNotRecorded) {
  struct Done {
    int64_t recorded, replayed;
  };
  const auto grad_inside = [](bool keep_alive) {
    Trial run(true);
    Tensor x = run.param({64});
    Done done{};
    run.region([&] {
      Tensor a = x.sin(), b = tick_saving(a, 1), c = tick_saving(b, 2), y = c.sum();
      if (!keep_alive) a = b = c = Tensor();
      const auto before = refrain::tape_stats();
      torch::autograd::grad({y}, {x});
      const auto after = refrain::tape_stats();
      done = {after.recorded_ops - before.recorded_ops, after.replayed_ops - before.replayed_ops};
    });
    return done;
  };
  const Done live = grad_inside(true), dropped = grad_inside(false);
  EXPECT_EQ(live.replayed, 0);
  EXPECT_GT(dropped.replayed, 0);
  EXPECT_EQ(dropped.recorded, live.recorded);
}

TEST_F(OnePass, ReplayIsNotRecorded) {
  Trial run(true);
  Tensor x = run.param({4, 4});
  Tensor loss = run.region([&] { return x.exp().sin().cos().sum(); });
  const auto before = tape_stats();
  loss.backward();
  EXPECT_EQ(tape_stats().recorded_ops, before.recorded_ops);
}

// ---- Rule 9 -----------------------------------------------------------------------------------------------------

// The outer region is filled once, before its last inner one, and not walked through anew for each.
TEST_F(Nested, OuterOperatorsAreReplayedOnceForAllInnerRegions) {
  reset_ticks();
  Trial run(true);
  Tensor x = run.param({16});
  Tensor loss = run.region([&] {
                     Tensor t = x;
                     for (int i = 0; i < 8; ++i) {
                       t = tick_saving(t, 0);
                       t = run.region([&] { return t.sin().exp(); });
                     }
                     return t;
                   })
                    .sum();
  EXPECT_EQ(ticks[0], 8);
  loss.backward();
  EXPECT_EQ(ticks[0], 16) << "each once more";
}

TEST_F(Nested, ThreeLevels) {
  reset_ticks();
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = tick_saving(x, 0).sin();
          Tensor b = run.region([&] {
            Tensor c = tick_saving(a * w, 1).cos();
            Tensor d = run.region([&] { return tick_saving(c.exp() + a, 2).sin() * a; });
            Tensor e = run.region([&] { return tick_saving(d * c, 3).tanh(); });
            return (e + d).sin();
          });
          return tick_saving(b * a, 4).sin() + run.region([&] { return tick_saving(b.sin(), 5).cos() * a; });
        })
        .sum();
  });
  for (size_t i = 0; i < 6; ++i) EXPECT_LE(ticks[i], 2 + 3) << "operator " << i << " ran more than once per level";
}

TEST_F(Nested, InnerReadsOuterValuesAndTheOtherWayRound) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x.exp().sin();
          Tensor inner_only;
          Tensor b = run.region([&] {
            inner_only = (a * 2).cos();
            return inner_only.sin() * a;
          });
          return (b * inner_only).sin() + a.exp();
        })
        .sum();
  });
}

TEST_F(Nested, InPlaceAcrossLevels) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x * 2;
          run.region([&] { a.add_(x.exp()); });
          Tensor b = run.region([&] { return a.sin(); });
          Tensor c = b * 3;
          run.region([&] { c.mul_(2.0); });
          return c.cos();
        })
        .sum();
  });
}

TEST_F(Nested, DropoutInEveryLevel) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region([&] {
          Tensor a = at::dropout(x.exp(), 0.5, true).sin();
          Tensor b = run.region([&] { return at::dropout(a, 0.4, true).sin(); });
          return at::dropout(b * a, 0.3, true).sin();
        })
        .sum();
  });
}

TEST_F(Nested, ManyInnerInOneOuterUseLessMemoryThanTheOuterAlone) {
  const auto peak = [](bool inner) {
    Trial run(true);
    Tensor x = run.param({kFloats});
    Tensor loss = run.region([&] {
      Tensor t = x;
      for (int i = 0; i < 6; ++i) {
        const auto block = [t] {
          Tensor u = t;
          for (int j = 0; j < 6; ++j) u = u.sin();
          return u;
        };
        t = inner ? run.region(block) : block();
      }
      return t.sum();
    });
    refrain::MemoryScope memory;
    loss.backward();
    return memory.peak();
  };
  EXPECT_LT(peak(true), 20 * kMega);
  EXPECT_GT(peak(false), 30 * kMega);
}

TEST_F(Nested, FiveLevelsDeepRecursion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    std::function<Tensor(Tensor, int)> descend = [&](Tensor t, int depth) {
      if (depth == 0) return t.sin();
      return run.region([&] {
        Tensor left = descend(t.exp().cos(), depth - 1);
        Tensor right = descend(t * left, depth - 1);
        return (left + right).sin();
      });
    };
    return descend(x, 5).sum();
  });
}

// ---- Rule 10 ----------------------------------------------------------------------------------------------------

TEST_F(Slots, RetainGraphThreeTimes) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor loss = run.region([&] { return at::dropout(x.exp(), 0.5, true).sin().cos(); }).sum();
    for (int i = 0; i < 3; ++i) {
      loss.backward({}, /*retain_graph=*/true);
      run.note("gradient after backward", x.grad());
    }
    return Tensor();
  });
}

TEST_F(Slots, DoubleBackward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor y = run.region([&] { return (x.exp() * w).sin().mm(w).tanh(); });
    auto first = torch::autograd::grad({y.sum()}, {x, w}, {}, true, /*create_graph=*/true);
    run.note("first", first[0]);
    return first[0].pow(2).sum() + first[1].sin().sum();
  });
}

TEST_F(Slots, DoubleBackwardThroughARegionOfTheGradient) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor y = x.exp().sin();
          Tensor g = torch::autograd::grad({y.sum()}, {x}, {}, true, /*create_graph=*/true)[0];
          return g.sin() * y;
        })
        .sum();
  });
}

TEST_F(Slots, GradInsideTheRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor inner = x.detach().exp().requires_grad_();
          Tensor g = torch::autograd::grad({inner.sin().mul(inner).sum()}, {inner})[0];
          return (x * g).sin();
        })
        .sum();
  });
}

TEST_F(Slots, TwiceInOneNode) {
  reset_ticks();
  const Counts n = expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = tick_saving(x, 0);
          return a * a;
        })
        .sum();
  });
  EXPECT_EQ(ticks[0], 3) << "plain, forward, one replay";
  EXPECT_EQ(n.replay_passes, 1);
}

TEST_F(Slots, UnpackedTwiceByOneFunction) {
  expect_same([](Trial& run) {
    Tensor x = run.param({64});
    return run.region([&] { return UnpacksTwice::apply(x.exp()).sin(); }).sum();
  });
}

// The second unpack replays `mul_` alone, from bytes that wait for ExpBackward: it must write into a copy.
TEST_F(Slots, UnpackedTwiceWhereAReplayedWriteStartsFromAnotherSlotsBytes) {
  expect_old_value(
      [](Trial& run) {
        Tensor x = run.param({64});
        return UnpacksTwice::apply(x.exp() * 2).sum();
      },
      [](Trial& run) {
        Tensor x = run.param({64});
        return run
            .region([&] {
              Tensor v = x.exp();
              v.mul_(2);
              return UnpacksTwice::apply(v);
            })
            .sum();
      });
}

// The graph is kept, so slots that this backward has read already are still there: they are not filled again.
TEST_F(Slots, UnpackedTwiceBringsBackOnlyWhatIsAsked) {
  reset_ticks();
  Trial run(true);
  Tensor x = run.param({64});
  Tensor loss = run.region([&] { return tick_saving(tick_saving(UnpacksTwice::apply(x.sin()), 1), 2); }).sum();
  loss.backward({}, /*retain_graph=*/true);
  EXPECT_EQ(ticks[1], 2) << "forward and one replay";
}

TEST_F(Slots, UnpackedTwiceLeaksNoBytes) {
  Trial run(true);
  Tensor x = run.param({kFloats});
  Tensor loss = run.region([&] { return UnpacksTwice::apply(x.exp()).sin().sum(); });
  refrain::MemoryScope memory;
  loss.backward({}, /*retain_graph=*/true);
  x.mutable_grad().reset();
  EXPECT_LT(memory.current(), kMega / 4);
}

TEST_F(Slots, BackwardOnSeveralThreadsOverOneGraph) {
  Trial run(true);
  Tensor x = run.param({32, 32});
  const auto fn = [&] { return at::dropout(x.exp(), 0.5, true).sin().mm(x).cos(); };
  torch::manual_seed(5);
  Tensor expected = torch::autograd::grad({fn().sum()}, {x})[0];
  for (int round = 0; round < 20; ++round) {
    torch::manual_seed(5);
    Tensor y = run.region(fn);
    Tensors losses = {y.sum(), y.mul(1).sum(), y.t().sum(), y.view(-1).sum()}, got(4);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] { got[i] = torch::autograd::grad({losses[i]}, {x}, {}, /*retain_graph=*/true)[0]; });
    }
    for (auto& t : threads) t.join();
    expect_bit_equal(expected, got[0], "gradient of thread 0");
    for (size_t i = 1; i < 4; ++i) EXPECT_TRUE(torch::allclose(expected, got[i])) << "thread " << i;
    expect_bit_equal(expected, got[1], "gradient of thread 1");
  }
}

// ---- Rule 11 ----------------------------------------------------------------------------------------------------

TEST_F(AcrossRegions, OutputOfOneReadByAnotherAndByPlainOperators) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor a = run.region([&] { return x.exp().sin(); });
    Tensor b = run.region([&] { return (a * w).cos(); });
    Tensor c = (a * b).tanh();
    return run.region([&] { return (c * a).sin() + b; }).sum();
  });
}

TEST_F(AcrossRegions, ValueSmuggledOut) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), inside;
    Tensor a = run.region([&] {
      inside = x.exp();
      return inside.sin();
    });
    Tensor b = run.region([&] { return (inside * a).sin(); });
    inside.reset();
    return (a + b).sum();
  });
}

// Legal in plain: the last operator of the region saved its input, not its output.
TEST_F(AcrossRegions, OutputAddedToAfterTheRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y = run.region([&] { return x.exp().mul(2).sin(); });
    y.add_(1);
    return y.sum();
  });
}

// The region must replay y0, not read the overwritten y.
TEST_F(AcrossRegions, OutputAddedToAfterAnotherRegionReadIt) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y = run.region([&] { return x.exp() + 1; });
    Tensor z = run.region([&] { return (y + 2).sin(); });
    y.add_(1);
    return (y.cos() + z).sum();
  });
}

// Only threads with regions are watched. The barrier sees the write before its version bump, the bump tells later: plain's error.
TEST_F(AcrossRegions, OutputWrittenByAnUnwatchedThreadIsPlainsError) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4}), h;
    Tensor loss = run.region([&] {
                       h = x.exp();
                       return h.sin();
                     })
                      .sum();
    std::thread([&] {
      torch::NoGradGuard no_grad;
      h.add_(1);
    }).join();
    return loss;
  };
  EXPECT_THROW(execute(program, false), std::exception);
  flush_engine();
  const std::string text = message_of<refrain::CheckpointError>([&] { execute(program, true); });
  EXPECT_NE(text.find("is at version 1, expected version 0"), std::string::npos) << text;
  flush_engine();
}

TEST_F(AcrossRegions, OutputOverwrittenWithoutABump) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y = run.region([&] { return x.exp() + 1; });
    Tensor z = run.region([&] { return (y + 2).sin(); });
    y.variable_data().zero_();
    return (y.cos() + z).sum();
  });
}

TEST_F(AcrossRegions, WrittenInPlaceByTheNextRegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y = run.region([&] { return (x.exp() + 1) * 2; });
    Tensor z = run.region([&] { return (y + 2).sin(); });
    run.region([&] { y.mul_(3.0).add_(z); });
    return run.region([&] { return y.cos() * z; }).sum();
  });
}

TEST_F(AcrossRegions, SiblingsUnderAutocastShareACast) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8});
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::increment_nesting();
    Tensor a = run.region([&] { return x.mm(w).tanh(); });
    Tensor b = run.region([&] { return a.mm(w).tanh(); });
    Tensor c = run.region([&] { return b.mm(w).tanh().to(torch::kFloat); });
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    return c.sum();
  });
}

TEST_F(AcrossRegions, ACastOfALeafIsRecomputedNotHeld) {
  Trial run(true);
  Tensor w = run.param({kFloats}), x = run.param({1});
  refrain::MemoryScope memory;
  Tensor loss;
  {
    Tensor cast;
    Tensor a = run.region([&] {
      cast = w.to(torch::kBFloat16);
      return (cast * x).sin().sum();
    });
    Tensor b = run.region([&] { return (cast * a).sin().sum(); });
    loss = a + b;
  }
  EXPECT_LT(memory.current(), kMega / 4) << "half a MiB is the cast";
  loss.backward();
}

TEST_F(AcrossRegions, HeldOnlyWhileAnotherRegionNeedsIt) {
  Trial run(true);
  Tensor x = run.param({kFloats});
  refrain::MemoryScope memory;
  Tensor loss;
  {
    Tensor y = run.region([&] { return x.exp().sin(); });
    loss = run.region([&] { return y.cos().exp().sum(); });
  }
  EXPECT_LT(memory.current(), kMega + kMega / 4) << "at most the boundary may be held";
  loss.backward({}, /*retain_graph=*/true);
  x.mutable_grad().reset();
  EXPECT_LT(memory.current(), kMega + kMega / 4);
  loss.reset();
  EXPECT_LT(memory.current(), kMega / 4);
}

TEST_F(AcrossRegions, ChainOfBlocksHoldsOnlyBoundaries) {
  Trial run(true);
  Tensor x = run.param({kFloats});
  refrain::MemoryScope memory;
  Tensor t = x;
  for (int i = 0; i < 6; ++i) {
    t = run.region([&t] {
      Tensor u = t;
      for (int j = 0; j < 8; ++j) u = u.sin();
      return u;
    });
  }
  Tensor loss = t.sum();
  t.reset();
  EXPECT_LT(memory.current(), 6 * kMega + kMega / 2);
  loss.backward();
  EXPECT_LT(memory.peak(), 6 * kMega + 13 * kMega);
}

TEST_F(AcrossRegions, OneRegionsGraphDiesBeforeTheOther) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor z;
    {
      Tensor y = run.region([&] { return x.exp().sin(); });
      z = run.region([&] { return (x * y.detach()).sin(); });
    }
    return z.sum();
  });
}

}  // namespace
}  // namespace refrain_test
