// Rules 2 and 3: writes in place make new versions; a saved tensor means the version that plain autograd would read,
// and where plain refuses because a value computed inside was overwritten, the version it had when it was saved.
#include <thread>

#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using Inplace = TapeTest;

// ---- Rule 2: versions -------------------------------------------------------------------------------------------

TEST_F(Inplace, ChainOnAValue) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region([&] {
          Tensor h = x * w;
          h.add_(1).relu_();
          return (h * w).sin();
        })
        .sum();
  });
}

TEST_F(Inplace, ReluAfterConvolution) {
  expect_same([](Trial& run) {
    Tensor x = run.param({2, 3, 8, 8}), w = run.param({4, 3, 3, 3});
    return run.region([&] { return (at::conv2d(x, w).relu_() * 0.5).add_(1).sigmoid_(); }).sum();
  });
}

TEST_F(Inplace, OnBaseSeenThroughView) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4});
    return run
        .region([&] {
          Tensor base = x + 1;
          Tensor row = base[1];
          base.mul_(3.0);
          return (row * w).sin() + base.sum(0).cos();
        })
        .sum();
  });
}

TEST_F(Inplace, OnViewSeenThroughBase) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region([&] {
          Tensor base = x + 1;
          base.t().select(0, 1).mul_(3.0);
          base.slice(0, 0, 4, 2).add_(w.slice(0, 0, 2));
          return (base * w).sin();
        })
        .sum();
  });
}

TEST_F(Inplace, PartialWriteDependsOnTheOldVersion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = x * 2;
          t[0].zero_();
          t[3].fill_(5);
          return t.sin();
        })
        .sum();
  });
}

TEST_F(Inplace, FullOverwriteDoesNotDependOnTheOldVersion) {
  reset_ticks();
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = tick(x, 0);
          t.zero_();
          t.add_(x);
          Tensor u = tick(x, 1);
          u.copy_(x);
          Tensor v = tick(x, 2);
          v.fill_(2);
          v.add_(x);
          return t.sin() * u.sin() * v.sin();
        })
        .sum();
  });
  // Once in the plain run, once in the recorded forward, never in backward.
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(ticks[i], 2) << "operator " << i << " was replayed for bytes nobody reads";
}

TEST_F(Inplace, RandomOverwritesDoNotDependOnTheOldVersion) {
  reset_ticks();
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = tick(x, 0).normal_(), u = tick(x, 1).uniform_(), v = tick(x, 2).bernoulli_(0.5);
          Tensor e = tick(x, 3).exponential_(), g = tick(x, 4).geometric_(0.5), c = tick(x, 5).cauchy_();
          Tensor l = tick(x, 6).log_normal_(), r = tick(x, 7).random_(1, 9);
          return ((x * t).sin() * (x * u).cos() * (x * v).sin()) + (x * e).sin() + (x * g).sin() + (x * c).sin() +
                 (x * l).sin() + (x * r).sin();
        })
        .sum();
  });
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(ticks[i], 2) << "operator " << i;
}

// A view that does not cover its storage is not fully overwritten.
TEST_F(Inplace, FillOfAViewKeepsTheRest) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor t = x.detach() * 2;
          t.slice(1, 0, 4, 2).fill_(7);
          t.narrow(0, 1, 1).copy_(torch::ones({1, 4}));
          return (x * t).sin();
        })
        .sum();
  });
}

TEST_F(Inplace, BufferWrittenBetweenTwoReads) {
  const Counts n = expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), buffer = run.input({4, 4});
    Tensor loss = run.region([&] {
                       Tensor y = (x.exp() + buffer).sin();
                       buffer.add_(1);
                       return (y.exp() + buffer).sin();
                     })
                      .sum();
    run.note("buffer", buffer);
    return loss;
  });
  EXPECT_EQ(n.leaf_copies, 1);
}

// A write to a leaf makes a new leaf, no operator: a counter costs nothing.
TEST_F(Inplace, CounterIsNotCopied) {
  const Counts n = expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), counter = torch::zeros({}, torch::kLong);
    Tensor loss = torch::zeros({});
    for (int i = 0; i < 3; ++i) {
      loss = loss + run.region([&] {
                         counter.add_(1);
                         return x.exp().sin();
                       })
                        .sum();
    }
    run.note("counter", counter);
    return loss;
  });
  EXPECT_EQ(n.leaf_copies, 0);
}

TEST_F(Inplace, KvCache) {
  expect_same([](Trial& run) {
    Tensor x = run.param({6, 4}), w = run.param({4, 4});
    Tensor cache = torch::zeros({6, 4});
    Tensor loss = torch::zeros({});
    for (int64_t i = 0; i < 6; ++i) {
      loss = loss + run.region([&] {
                         Tensor k = x[i].matmul(w);
                         cache[i].copy_(k.detach());
                         return k.matmul(cache.narrow(0, 0, i + 1).clone().t()).softmax(0).sin();
                       })
                        .sum();
    }
    run.note("cache", cache);
    return loss;
  });
}

TEST_F(Inplace, OpThatWritesALeafAndReturnsMore) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 3}), w = run.param({3}), b = run.param({3});
    Tensor mean = run.input({3}), var = run.input({3}).abs();
    Tensor loss = run.region([&] {
                       auto [y, m, s] = at::_native_batch_norm_legit(x, w, b, mean, var, true, 0.1, 1e-5);
                       return y.sin() + (mean * w).sin().sum();
                     })
                      .sum();
    run.note("mean", mean);
    run.note("var", var);
    return loss;
  });
}

TEST_F(Inplace, ReplayDoesNotSpoilAValueReadLater) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor u = x.mul(2), v = u.add(1);
          Tensor s = v.sin();
          u.add_(v);
          Tensor t = u.clone();
          t.mul_(3.0);
          return u.sin() * t.cos() + s;
        })
        .sum();
  });
}

TEST_F(Inplace, ReplayDoesNotWriteIntoWhatTheUserHolds) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor held;
    Tensor loss = run.region([&] {
                       Tensor u = x.detach().exp();
                       held = u;  // alive through backward
                       Tensor v = u.add(1);
                       u.mul_(2);
                       return (x * u).sin() * (x * v).sin();
                     })
                      .sum();
    loss.backward();
    run.note("held", held);
    return Tensor();
  });
}

TEST_F(Inplace, ReplayDoesNotWriteIntoALeaf) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), data = run.input({4, 4});
    Tensor loss = run.region([&] {
                       Tensor u = data.contiguous();  // the same storage
                       Tensor v = u.to(torch::kFloat).add(1);
                       v.mul_(u);
                       return (x * v).sin();
                     })
                      .sum();
    loss.backward();
    run.note("data", data);
    return Tensor();
  });
}

TEST_F(Inplace, AliasedArgumentsWithoutGradient) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x.detach().exp();
          a.mul_(a);
          a.add_(a.t().clone());
          return (x * a).sin();
        })
        .sum();
  });
}

TEST_F(Inplace, UnmarkedAliases) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run.region([&] {
      Tensor a = x + 1;
      Tensor flat = at::_unsafe_view(a, {16});
      auto parts = at::unsafe_split(a, 2, 0);
      return flat.sin().sum() + parts[0].cos().sum() * parts[1].sin().sum();
    });
  });
}

TEST_F(Inplace, ForeachOnValues) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x.detach() * 2, b = x.detach() * 3;
          at::_foreach_mul_({a, b}, 1.5);
          at::_foreach_add_({a, b}, {b.clone(), a.clone()});
          return (x * a).sin() + (x * b).cos();
        })
        .sum();
  });
}

TEST_F(Inplace, OutVariantOverwrites) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = torch::zeros({4, 4});
          at::sin_out(a, x.detach());
          Tensor b = (x * a).sin(), c = torch::zeros({4, 4});
          at::cos_out(c, b.detach());
          at::add_out(c, c, a);
          return b * c;
        })
        .sum();
  });
}

TEST_F(Inplace, MetadataOnly) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x.exp().add(1);
          a.t_();
          a.unsqueeze_(0);
          a.squeeze_(0);
          a.transpose_(0, 1);
          return (a * w).sin();
        })
        .sum();
  });
}

// The version alone does not tell it from a write.
TEST_F(Inplace, AnotherThreadsChangeOfShapeIsRefused) {
  const auto x = torch::arange(12, torch::kFloat).view({3, 4}).clone();
  const auto w = torch::ones({3, 4}, torch::requires_grad());
  const auto change = [&](bool elsewhere) {
    if (elsewhere)
      std::thread([&] { x.t_(); }).join();
    else
      x.t_();
  };
  for (const bool elsewhere : {false, true}) {
    const auto y = refrain::checkpoint([&] { return (x + w).sin(); });
    change(elsewhere);
    if (elsewhere) {
      EXPECT_THROW(y.sum().backward(), refrain::CheckpointError);
    } else {
      y.sum().backward();
    }
    x.t_();
  }
  flush_engine();
}

// ---- Rule 3: which version a slot means -------------------------------------------------------------------------

// An operator fills an argument that autograd saved before the call, and does not bump its version.
TEST_F(Inplace, NoiseFilledAfterItWasSaved) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run.region([&] { return at::rrelu(x * 1.0, 0.1, 0.9, true).sin(); }).sum();
  });
}

TEST_F(Inplace, NoiseZerosMadeInside) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region([&] {
          Tensor noise = torch::zeros({8, 8});
          return at::rrelu_with_noise(x * 1.0, noise, 0.1, 0.9, true).sin();
        })
        .sum();
  });
}

TEST_F(Inplace, NoiseFromOutside) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), noise = torch::zeros({8, 8});
    Tensor loss = run.region([&] { return at::rrelu_with_noise(x * 1.0, noise, 0.1, 0.9, true).sin(); }).sum();
    run.note("noise", noise);
    return loss;
  });
}

// The write is the last operator of the region, or of the program: settled without another fallback.
TEST_F(Inplace, NoiseAsTheLastOperator) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    Tensor y = run.region([&] {
      Tensor noise = torch::zeros({8, 8});
      return at::rrelu_with_noise(x, noise, 0.1, 0.9, true);
    });
    y.backward(torch::ones({8, 8}));
    return Tensor();
  });
}

TEST_F(Inplace, NoiseUsedTwice) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region([&] {
          Tensor noise = torch::zeros({8, 8});
          Tensor a = at::rrelu_with_noise(x, noise, 0.1, 0.9, true);
          Tensor b = (x * noise).sin();
          Tensor other = torch::zeros({8, 8});
          return a + b + at::rrelu_with_noise(b, other, 0.1, 0.9, true);
        })
        .sum();
  });
}

TEST_F(Inplace, DataWriteOnAValueMovesTheSlot) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x + 1;
          Tensor b = a.sin();
          a.variable_data().mul_(2);
          return b + a.cos();
        })
        .sum();
  });
}

TEST_F(Inplace, DataWriteAsTheLastOperator) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = x + 1;
          Tensor b = a.sin();
          a.variable_data().mul_(2);
          return b;
        })
        .sum();
  });
}

TEST_F(Inplace, DataWriteOnASavedLeaf) {
  for (bool inside : {true, false}) {
    expect_same([inside](Trial& run) {
      Tensor x = run.param({4, 4}), w = run.param({4, 4});
      Tensor loss = run.region([&] {
                         Tensor y = x.exp() * w;
                         if (inside) w.variable_data().mul_(2);
                         return y;
                       })
                        .sum();
      if (!inside) w.variable_data().mul_(2);
      return loss;
    });
  }
}

TEST_F(Inplace, BatchNormStatisticsSavedThenUsed) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 3}), w = run.param({3}), b = run.param({3});
    Tensor mean = torch::zeros({3}), var = torch::ones({3});
    Tensor loss = run.region([&] {
                       Tensor y = at::batch_norm(x, w, b, mean, var, true, 0.1, 1e-5, false);
                       return at::batch_norm(y.sin(), w, b, mean, var, false, 0.1, 1e-5, false).sin();
                     })
                      .sum();
    run.note("mean", mean);
    run.note("var", var);
    return loss;
  });
}

// ---- Programs that plain autograd refuses: the old value, as the out-of-place twin has it ------------------------

TEST_F(Inplace, SquareInPlace) {
  LibTorchLeaks quiet;
  expect_old_value(
      [](Trial& run) {
        Tensor x = run.param({4, 4}), a = x.exp();
        return (a * a).sin().sum();
      },
      [](Trial& run) {
        Tensor x = run.param({4, 4});
        return run
            .region([&] {
              Tensor a = x.exp();
              a.mul_(a);
              return a.sin();
            })
            .sum();
      });
}

TEST_F(Inplace, ResultSavedThenAddedTo) {
  expect_old_value(
      [](Trial& run) {
        Tensor x = run.param({4, 4});
        return (x.exp() + 1).sin().sum();
      },
      [](Trial& run) {
        Tensor x = run.param({4, 4});
        return run.region([&] { return x.exp().add_(1).sin(); }).sum();
      });
}

TEST_F(Inplace, SeveralVersionsSaved) {
  expect_old_value(
      [](Trial& run) {
        Tensor x = run.param({4, 4}), w = run.param({4, 4});
        Tensor a0 = x + 1, s0 = a0.sin(), a1 = a0 * 2, s1 = a1.sin(), a2 = a1 + w, s2 = a2.sin();
        return (s0 + s1 + s2).sum();
      },
      [](Trial& run) {
        Tensor x = run.param({4, 4}), w = run.param({4, 4});
        return run
            .region([&] {
              Tensor a = x + 1, s0 = a.sin();
              a.mul_(2);
              Tensor s1 = a.sin();
              a.add_(w);
              Tensor s2 = a.sin();
              return s0 + s1 + s2;
            })
            .sum();
      });
}

TEST_F(Inplace, ViewOfASavedResultZeroed) {
  expect_old_value(
      [](Trial& run) {
        Tensor x = run.param({4, 4});
        return x.exp().select_scatter(torch::zeros({4}), 0, 1).sin().sum();
      },
      [](Trial& run) {
        Tensor x = run.param({4, 4});
        return run
            .region([&] {
              Tensor a = x.exp();
              a.select(0, 1).zero_();
              return a.sin();
            })
            .sum();
      });
}

TEST_F(Inplace, OverwrittenAfterTheRegion) {
  expect_old_value(
      [](Trial& run) {
        Tensor x = run.param({4, 4}), a = x + 1, b = a.sin();
        return (b + (a + 1)).sum();
      },
      [](Trial& run) {
        Tensor x = run.param({4, 4});
        auto [a, b] = run.region([&] {
          Tensor u = x + 1;
          return std::pair(u, u.sin());
        });
        a.add_(1);
        return (b + a).sum();
      });
}

// The region that made the value ends between two replays of the one that overwrote it. A region inside read it too,
// whose replay gave it its bytes again: another tensor's than the one that now has the newer ones.
TEST_F(Inplace, OverwrittenByARegionThatOutlivesIts) {
  expect_same([](Trial& run) {
    Tensor w = run.param({4, 4});
    const Tensor s = w.sin();
    Tensor old;
    Tensor other = run.region([&] {
                        old = s * 2;
                        return run.region([&] { return (old + s).exp(); });
                      })
                       .sum();
    return run.region([&] {
      const Tensor u = w.tanh();
      old.mul_(0.7);
      const Tensor v = old.cos();
      Tensor all = (u * v).sum() + other;
      old.reset();
      other.reset();
      const auto inside = torch::autograd::grad({all}, {w}, {}, /*retain_graph=*/true)[0];
      all.reset();
      return (u * v * inside).sum();
    });
  });
}

}  // namespace
}  // namespace refrain_test
