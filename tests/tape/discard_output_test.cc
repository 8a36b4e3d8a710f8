// Outputs of regions that are kept by nobody and refilled in time.
#include "refrain/memory.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::checkpoint;
using refrain::discard_output;
using DiscardOutput = TapeTest;

// A region's output that the next operator saves as its input.
Tensor wide(Trial& run, const Tensor& x, const Tensor& w, bool discard) {
  auto y = run.region([&] { return torch::dropout(torch::gelu(x.mm(w)), 0.3, true); });
  return discard && run.recorded() ? discard_output(y) : y;
}

TEST_F(DiscardOutput, GradientsAreThePlainOnesWhoeverSavesIt) {
  const auto by_nobody = [](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    return wide(run, x, w, true).sum();
  };
  const auto by_autograd = [](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8}), v = run.param({8, 8});
    return wide(run, x, w, true).mm(v).sin().sum();
  };
  const auto by_a_region = [](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8}), v = run.param({8, 8});
    auto y = wide(run, x, w, true);
    return run.region([&] { return y.mm(v).sin().mm(v); }).sum();
  };
  const auto by_an_inner_region = [](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8}), v = run.param({8, 8});
    auto y = wide(run, x, w, true);
    return run.region([&] { return run.region([&] { return y.mm(v).sin(); }).mm(v).exp(); }).sum();
  };
  const auto by_all = [](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8}), v = run.param({8, 8});
    auto y = wide(run, x, w, true);
    auto a = run.region([&] { return y.mm(v).sin(); });
    return (a * y).exp().sum() + y.pow(2).sum();
  };
  for (const auto& program :
       {Program(by_nobody), Program(by_autograd), Program(by_a_region), Program(by_an_inner_region), Program(by_all)})
    expect_same(program);
}

TEST_F(DiscardOutput, ItsRegionIsReplayedOnce) {
  const auto counts = expect_same([](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8}), v = run.param({8, 8});
    auto y = wide(run, x, w, true);
    return run.region([&] { return y.mm(v).sin().mm(v); }).sum();
  });
  // mm, gelu, dropout's three of the first region once, though both regions need them; mm, sin of the second
  EXPECT_EQ(counts.replay_passes, 2);
  EXPECT_LE(counts.replayed, 8);
}

TEST_F(DiscardOutput, RowsOfThemSeveralBackwardsAndDoubleBackward) {
  expect_same([](Trial& run) {
    auto x = run.param({6, 6}), w = run.param({6, 6});
    Tensor h = x;
    for (int i = 0; i < 20; ++i) h = wide(run, h, w, true);
    auto loss = h.sin().sum();
    loss.backward({}, true);
    loss.backward({}, true);
    auto g = torch::autograd::grad({loss}, {x}, {}, true, true)[0];
    g.pow(2).sum().backward();
    return Tensor();
  });
}

TEST_F(DiscardOutput, NobodyHoldsItsBytes) {
  auto x = torch::randn({64, 64}).requires_grad_(), w = torch::randn({64, 64}).requires_grad_();
  const auto held = [&](bool discard, bool in_region) {
    refrain::MemoryScope memory;
    auto y = checkpoint([&] { return torch::gelu(x.mm(w)); });
    if (discard) discard_output(y);
    const auto next = [&w](const Tensor& t) { return t.mm(w).sum(); };
    auto loss = in_region ? checkpoint(next, y) : next(y);
    y.reset();
    const auto bytes = memory.current();
    loss.backward();
    return bytes;
  };
  for (const bool in_region : {false, true})
    EXPECT_EQ(held(false, in_region) - held(true, in_region), int64_t{64 * 64 * 4}) << "in a region: " << in_region;
}

TEST_F(DiscardOutput, ATensorThatNoRegionMadeStaysAsItIs) {
  auto x = torch::randn({4, 4}).requires_grad_();
  auto y = discard_output(x.sin());
  EXPECT_NO_THROW(y.exp().sum().backward());
  EXPECT_NO_THROW(discard_output(Tensor()));
  auto leaf = checkpoint([&] { return discard_output(x); });
  EXPECT_NO_THROW(leaf.sin().sum().backward());
}

// Other tensors that are saved outside of regions meanwhile keep autograd's own check.
TEST_F(DiscardOutput, AutogradStillRefusesWhatWasOverwritten) {
  auto x = torch::randn({4, 4}).requires_grad_();
  auto y = discard_output(checkpoint([&] { return x.sin(); }));
  auto other = torch::randn({4, 4});
  auto loss = (y * other).sum();
  other.add_(1);
  EXPECT_THROW(loss.backward(), refrain::CheckpointError);
  auto z = x.exp();
  auto sum = (z * z + y).sum();
  {
    torch::NoGradGuard no_grad;
    z.add_(1);
  }
  EXPECT_THROW(sum.backward(), std::exception);
}

}  // namespace
}  // namespace refrain_test
