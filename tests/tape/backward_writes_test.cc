// A custom function's backward writes into what it saved, and another node saved the same tensor. Plain autograd sees a bump and refuses; the
// tape replays the other one. A write without a bump is read by the other, as in plain autograd.
#include <thread>

#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointError;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using BackwardWrites = TapeTest;

using Write = std::function<Tensor(Tensor)>;  ///< doubles what it is given, in place, and returns it

// y = e * e, whose gradient 2 e g is computed in place of e.
struct Square : Function<Square> {
  static Tensor forward(AutogradContext* ctx, const Tensor& e, const Write& write) {
    ctx->save_for_backward({e});
    ctx->saved_data["write"] = reinterpret_cast<int64_t>(&write);
    return e * e;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& write = *reinterpret_cast<const Write*>(ctx->saved_data["write"].toInt());
    return {write(ctx->get_saved_variables()[0]) * grads[0], Tensor()};
  }
};

Tensor by_operator(Tensor t) { return t.mul_(2); }
Tensor out_of_place(Tensor t) { return t * 2; }
Tensor by_data(Tensor t) {
  t.variable_data().mul_(2);
  return t;
}
Tensor by_pointer(Tensor t) {
  auto* data = t.data_ptr<float>();
  for (int64_t i = 0; i < t.numel(); ++i) data[i] *= 2;
  return t;
}

// exp saves its result, and so does `Square`.
Program shared(const Write& write, bool outside = false) {
  return [=](Trial& run) {
    Tensor x = run.param({16}), kept;
    return run
        .region([&] {
          Tensor e = x.exp();
          if (outside) kept = e;  // its memory stays: backward unpacks that
          return Square::apply(e, write);
        })
        .sum();
  };
}

TEST_F(BackwardWrites, ByAnOperator) {
  const Write write = by_operator, twin = out_of_place;
  for (const bool outside : {false, true}) expect_old_value(shared(twin, outside), shared(write, outside));
}

TEST_F(BackwardWrites, WithoutABump) {
  for (const Write write : {by_data, by_pointer}) {
    expect_same(shared(write));
    expect_same([&](Trial& run) {
      Tensor x = run.param({16}), e;
      Tensor loss = run.region([&] {
                         e = x.exp();
                         return Square::apply(e, write);
                       })
                        .sum();
      loss.backward();
      run.note("e", e);
      return Tensor();
    });
  }
}

// Each backward reads what the one before has left.
TEST_F(BackwardWrites, TwiceWithoutABump) {
  for (const Write write : {by_data, by_pointer}) {
    expect_same([&](Trial& run) {
      Tensor x = run.param({16});
      Tensor loss = run.region([&] { return Square::apply(x.exp(), write); }).sum();
      loss.backward({}, /*retain_graph=*/true);
      run.note("gradient", x.grad());
      loss.backward({}, /*retain_graph=*/true);
      run.note("gradient", x.grad());
      return loss;
    });
  }
}

TEST_F(BackwardWrites, TwiceByAnOperator) {
  const auto program = [](const Write& write) {
    return [&write](Trial& run) {
      Tensor x = run.param({16});
      Tensor loss = run.region([&] { return Square::apply(x.exp(), write); }).sum();
      loss.backward({}, /*retain_graph=*/true);
      return loss;
    };
  };
  const Write write = by_operator, twin = out_of_place;
  expect_old_value(program(twin), program(write));
}

// In nested regions, and one that reads from another.
// Found by random programs. The second backward replays, and its tensors must share a version as those of the first did.
TEST_F(BackwardWrites, WhatASecondBackwardSavesOfTheSameMemoryIsRefused) {
  auto x = torch::randn({16}).requires_grad_();
  const Write write = by_operator;
  const auto loss = refrain::checkpoint(
                        [&](const Tensor& a) {
                          const auto e = a.exp();
                          return e.sin() + Square::apply(e, write);
                        },
                        x)
                        .sum();
  torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true);
  const auto again = torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true)[0];
  EXPECT_THROW(torch::autograd::grad({again.square().sum()}, {x}), c10::Error);
}

// Likewise: what the first to read writes is not what the second reads.
TEST_F(BackwardWrites, InASecondBackward) {
  auto x = torch::randn({16}).requires_grad_();
  const Write write = by_operator, twin = out_of_place;
  const auto loss_of = [&](const Write& w) {
    return refrain::checkpoint([&](const Tensor& a) { return Square::apply(a.exp(), w); }, x).sum();
  };
  const auto loss = loss_of(write), other = loss_of(twin);
  const auto expected = torch::autograd::grad({other}, {x})[0];
  for (int i = 0; i < 3; ++i)
    expect_bit_equal(expected, torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true)[0]);
  std::thread([&] { expect_bit_equal(expected, torch::autograd::grad({loss}, {x})[0]); }).join();
}

TEST_F(BackwardWrites, AcrossRegions) {
  const auto program = [](const Write& write) {
    return [&write](Trial& run) {
      Tensor x = run.param({16});
      return run
          .region([&] {
            Tensor e = x.exp();
            Tensor y = run.region([&] { return Square::apply(e, write); });
            Tensor z = run.region([&] { return (e * e).sin(); });
            return y + z;
          })
          .sum();
    };
  };
  const Write write = by_operator, twin = out_of_place;
  expect_old_value(program(twin), program(write));
}

TEST_F(BackwardWrites, OnATensorFromOutside) {
  const Write write = by_operator;
  std::vector<float> blob(16, 0.5F);
  const Program programs[] = {
      [&](Trial& run) {
        Tensor x = run.param({16}), from = run.param({16});
        return run
            .region([&] {
              Tensor y = x * from;
              return y + Square::apply(from, write);
            })
            .sum();
      },
      [&](Trial& run) {
        Tensor x = run.param({16}), from = torch::from_blob(blob.data(), {16}).requires_grad_();
        return run
            .region([&] {
              Tensor y = x * from;
              return y + Square::apply(from, write);
            })
            .sum();
      },
  };
  for (const auto& program : programs) {
    EXPECT_THROW(execute(program, false), std::exception);
    flush_engine();
    std::fill(blob.begin(), blob.end(), 0.5F);
    EXPECT_THROW(execute(program, true), std::exception);
    flush_engine();
    std::fill(blob.begin(), blob.end(), 0.5F);
  }
}

TEST_F(BackwardWrites, OnAThreadOfItsOwn) {
  const Write write = by_operator, twin = out_of_place;
  const auto program = [](const Write& w) {
    return [&w](Trial& run) {
      Tensor x = run.param({16});
      Tensor loss = run.region([&] { return Square::apply(x.exp(), w); }).sum();
      std::exception_ptr failure;
      std::thread([&] {
        try {
          loss.backward();
        } catch (...) {
          failure = std::current_exception();
        }
      }).join();
      if (failure) std::rethrow_exception(failure);
      return Tensor();
    };
  };
  expect_old_value(program(twin), program(write));
}

TEST_F(BackwardWrites, UnderRerunItIsAnError) {
  const Write write = by_operator;
  const auto options = refrain::CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  const auto program = [](const Write& w) {
    return [&w](Trial& run) {
      Tensor x = run.param({16});
      return run.region([x, &w] { return Square::apply(x.exp(), w); }).sum();
    };
  };
  EXPECT_THROW(execute(program(write), false), std::exception);
  flush_engine();
  EXPECT_THROW(execute(program(write), true, options), CheckpointError);
  const Write unseen = by_data;
  expect_same(program(unseen), options);
}

TEST_F(BackwardWrites, UnderACap) {
  const Write write = by_operator, twin = out_of_place;
  const auto want = execute(shared(twin), false);
  refrain::install_memory_tracking();
  refrain::MemoryCap cap(refrain::Bytes{1} << 40);
  EXPECT_TRUE(execute(shared(write), true) == want);
}

// What is in the store is not written; what is kept in memory has plain autograd's error.
TEST_F(BackwardWrites, InAnOffloadScope) {
  const Write write = by_operator, twin = out_of_place;
  const auto program = [](const Write& w) {
    return [&w](Trial& run) {
      Tensor x = run.param({16}), loss;
      const refrain::OffloadScope scope(refrain::OffloadStore(refrain::OffloadOptions().min_bytes(0)));
      return Square::apply(x.exp(), w).sum();
    };
  };
  const auto want = execute(program(twin), false);
  try {
    EXPECT_TRUE(execute(program(write), false) == want);
  } catch (const CheckpointError&) {
  }
}

}  // namespace
}  // namespace refrain_test
