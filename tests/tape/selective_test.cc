// Policies: what they keep is not replayed and costs its bytes no longer than it is needed; whatever they answer, the
// gradients are those of the plain run.
#include <map>

#include <ATen/autocast_mode.h>

#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointOptions;
using refrain::CheckpointPolicy;
using refrain::InvalidArgument;
using refrain::OpContext;
using refrain::Policy;
using Selective = TapeTest;

constexpr int64_t kSide = 64;
constexpr int64_t kBytes = kSide * kSide * static_cast<int64_t>(sizeof(float));

CheckpointOptions with(Policy policy) { return CheckpointOptions().policy(std::move(policy)); }

// mm, gelu, mm, dropout, tanh, mm: products between pointwise and random operators.
Tensor block(const Tensor& x, const Tensor& w) {
  Tensor h = torch::gelu(x.mm(w));
  h = torch::dropout(h.mm(w), 0.3, true);
  return h.tanh().mm(w).sin();
}

Program block_with(Policy policy) {
  return [policy](Trial& run) {
    Tensor x = run.param({kSide, kSide}), w = run.param({kSide, kSide});
    return run.region_with(with(policy), block, x, w).sum();
  };
}

// How often each operator ran again in the backward of `block`.
int64_t replays(const Policy& policy) { return expect_same(block_with(policy)).replayed; }

Policy everything_must(CheckpointPolicy answer) {
  return [answer](const OpContext&) { return answer; };
}

TEST_F(Selective, TheReadyPoliciesGiveThePlainGradients) {
  const std::vector<Policy> policies{
      refrain::save_matmuls(),     refrain::save_compute_intensive(), refrain::dots_saveable(),
      refrain::nothing_saveable(), refrain::everything_saveable(),    refrain::save_every_second_matmul(),
      refrain::save_random(),      refrain::save_ops({"aten::gelu"}), refrain::save_ops({"aten::tanh", "aten::mm"})};
  for (const auto& policy : policies) expect_same(block_with(policy));
}

TEST_F(Selective, WhatIsKeptIsNotReplayed) {
  const int64_t none = replays(refrain::nothing_saveable());
  EXPECT_EQ(replays(refrain::everything_saveable()), 0);
  EXPECT_EQ(replays(refrain::save_matmuls()), none - 3) << "three products less";
  EXPECT_EQ(replays(refrain::save_every_second_matmul()), none - 2) << "the first and the third";
  EXPECT_EQ(replays(everything_must(CheckpointPolicy::kPreferSave)), 0);
  EXPECT_EQ(replays(everything_must(CheckpointPolicy::kMustRecompute)), none);
}

// Autograd saves rrelu's noise before the kernel draws it, and nothing else refers to it.
TEST_F(Selective, WhatIsSavedBeforeItIsWrittenIsKept) {
  const auto noise_kept = [](const Policy& policy) {
    return expect_same([policy](Trial& run) {
             Tensor x = run.param({kSide, kSide});
             return run
                 .region_with(
                     with(policy), [](const Tensor& a) { return torch::rrelu(a, 0.1, 0.4, true); }, x)
                 .sum();
           }).replayed == 0;
  };
  EXPECT_TRUE(noise_kept(refrain::everything_saveable()));
  EXPECT_TRUE(noise_kept(refrain::save_ops({"aten::rrelu_with_noise"})));
  EXPECT_FALSE(noise_kept(refrain::nothing_saveable()));
}

TEST_F(Selective, WhatNothingNeedsIsNotKept) {
  Trial run(true);
  Tensor x = run.param({kSide, kSide});
  refrain::MemoryScope memory;
  // exp keeps its result, which the policy would too; neg's result is read by add, which keeps nothing and is not replayed
  Tensor y = refrain::checkpoint(with(refrain::everything_saveable()), [&] { return x.exp().neg().add(1.0).neg(); });
  EXPECT_EQ(memory.current(), 2 * kBytes) << "exp's result and the region's";
}

TEST_F(Selective, KeptBytesGoAsBackwardUsesThem) {
  Trial run(true);
  Tensor x = run.param({kSide, kSide});
  refrain::MemoryScope memory;
  Tensor y = refrain::checkpoint(with(refrain::save_ops({"aten::exp"})), [&] { return x.exp().sin().cos(); });
  EXPECT_EQ(memory.current(), 2 * kBytes) << "exp's result and the region's";
  y.sum().backward();
  y.reset();
  EXPECT_EQ(memory.current(), kBytes) << "the gradient";
}

TEST_F(Selective, KeptAndRecomputedRandomOperatorsTogether) {
  expect_same([](Trial& run) {
    Tensor x = run.param({kSide, kSide});
    return run
        .region_with(with(refrain::save_ops({"aten::bernoulli_", "aten::native_dropout"})),
                     [&] {
                       Tensor kept = torch::dropout(x.exp(), 0.5, true);
                       return (kept.sin() * torch::rand_like(kept)).cos() * torch::randn_like(kept);
                     })
        .sum();
  });
}

TEST_F(Selective, AKeptResultThatIsOverwrittenIsComputedAgain) {
  expect_same([](Trial& run) {
    Tensor x = run.param({kSide, kSide}), w = run.param({kSide, kSide});
    return run
        .region_with(with(refrain::save_matmuls()),
                     [&] {
                       Tensor h = x.mm(w);
                       h.relu_();
                       Tensor g = h.mm(w);
                       g.mul_(2).add_(h);
                       return g.sin().mm(w);
                     })
        .sum();
  });
}

// Through `variable_data` no version tells: plain autograd reads the new bytes, and so must we.
TEST_F(Selective, AKeptResultWrittenAfterTheRegionWithoutABump) {
  expect_same([](Trial& run) {
    Tensor x = run.param({kSide, kSide}), w = run.param({kSide, kSide});
    Tensor h;
    Tensor y = run.region_with(with(refrain::save_matmuls()), [&] {
      h = x.mm(w);
      return h.sin().sum();
    });
    h.variable_data().fill_(0.5);
    h = Tensor();
    return y;
  });
}

TEST_F(Selective, SeveralBackwardsAndDoubleBackward) {
  for (const auto& policy : {refrain::save_matmuls(), refrain::save_every_second_matmul(), refrain::save_random()}) {
    expect_same([&](Trial& run) {
      Tensor x = run.param({8, 8}), w = run.param({8, 8});
      Tensor y = run.region_with(with(policy), block, x, w).sum();
      for (int i = 0; i < 3; ++i) run.note("first", torch::autograd::grad({y}, {x}, {}, /*retain_graph=*/true)[0]);
      Tensor g = torch::autograd::grad({y}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
      return g.pow(2).sum() + y;
    });
  }
}

TEST_F(Selective, TenBackwardsHoldNoMore) {
  Trial run(true);
  Tensor x = run.param({kSide, kSide}), w = run.param({kSide, kSide});
  Tensor y = refrain::checkpoint(with(refrain::save_matmuls()), block, x, w).sum();
  torch::autograd::grad({y}, {x}, {}, true);
  refrain::MemoryScope memory;
  for (int i = 0; i < 10; ++i) torch::autograd::grad({y}, {x}, {}, true);
  EXPECT_EQ(memory.current(), 0);
}

TEST_F(Selective, NestedRegionsHaveTheirOwnPolicies) {
  expect_same([](Trial& run) {
    Tensor x = run.param({kSide, kSide}), w = run.param({kSide, kSide});
    return run
        .region_with(with(refrain::save_matmuls()),
                     [&] {
                       Tensor h = run.region(block, x, w);
                       h = run.region_with(with(refrain::everything_saveable()), block, h, w);
                       return block(h, w);
                     })
        .sum();
  });
}

TEST_F(Selective, SiblingsUnderAutocastThatShareAWeight) {
  expect_same([](Trial& run) {
    Tensor x = run.param({kSide, kSide}), w = run.param({kSide, kSide});
    at::autocast::set_autocast_enabled(at::kCPU, true);
    Tensor a = run.region_with(with(refrain::save_matmuls()), block, x, w);
    Tensor b = run.region_with(with(refrain::save_matmuls()), block, x, w);
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    return (a + b).to(torch::kFloat).sum();
  });
}

TEST_F(Selective, APolicySeesTheOperator) {
  std::map<std::string, int> seen;
  std::vector<int64_t> positions;
  Trial run(true);
  Tensor x = run.param({2, 3}), w = run.param({3, 4});
  const Policy look = [&](const OpContext& op) {
    ++seen[std::string(op.name())];
    positions.push_back(op.position());
    if (op.name() == "aten::mm") {
      EXPECT_EQ(op.overload(), "");
      EXPECT_EQ(op.inputs().size(), 2U);
      EXPECT_EQ(op.inputs()[1].sizes, (std::vector<int64_t>{3, 4}));
      EXPECT_EQ(op.outputs()[0].sizes, (std::vector<int64_t>{2, 4}));
      EXPECT_EQ(op.outputs()[0].dtype, at::kFloat);
      EXPECT_EQ(op.output_bytes(), 32);
      EXPECT_EQ(op.scope(), "encoder.layer1");
    } else if (op.name() == "aten::add") {
      EXPECT_EQ(op.overload(), "Tensor");
      EXPECT_EQ(op.scope(), "encoder");
      EXPECT_EQ(op.count("add"), 0);
      EXPECT_EQ(op.count("add"), 1);
    }
    EXPECT_EQ(op.random(), op.name() == "aten::bernoulli_");
    at::ones({2}).exp();  // operators of the policy itself are nobody's business
    return CheckpointPolicy::kPreferRecompute;
  };
  refrain::checkpoint(with(look),
                      [&] {
                        refrain::ModuleScope outer("encoder");
                        Tensor h;
                        {
                          refrain::ModuleScope inner("layer1");
                          h = x.mm(w);
                        }
                        return torch::dropout(h + h, 0.5, true);
                      })
      .sum()
      .backward();
  EXPECT_EQ(seen["aten::mm"], 1);
  EXPECT_EQ(seen["aten::add"], 1);
  EXPECT_EQ(seen["aten::bernoulli_"], 1);
  EXPECT_EQ(seen.count("aten::exp"), 0U);
  for (size_t i = 0; i < positions.size(); ++i) EXPECT_EQ(positions[i], static_cast<int64_t>(i));
}

TEST_F(Selective, UnknownOperatorNamesAreAnErrorWithTheNearest) {
  const auto message = [](const std::string& op) {
    return message_of<InvalidArgument>([&] { (void)refrain::save_ops({"aten::mm", op}); });
  };
  EXPECT_NE(message("aten::convolutoin").find("aten::convolution"), std::string::npos) << message("aten::convolutoin");
  EXPECT_NE(message("mm").find("namespace::name"), std::string::npos);
  EXPECT_NE(message("aten::add.Tensr").find("aten::add.Tensr"), std::string::npos);
  EXPECT_NO_THROW((void)refrain::save_ops({"aten::add.Tensor", "aten::mm"}));
}

TEST_F(Selective, OverloadsAreToldApart) {
  Trial run(true);
  Tensor x = run.param({kSide, kSide});
  const auto program = [&] { return ((x.exp() + x).sin() + 1.0).cos(); };
  const int64_t before = refrain::tape_stats().replayed_ops;
  refrain::checkpoint(with(refrain::save_ops({"aten::add.Scalar"})), program).sum().backward();
  const int64_t scalar = refrain::tape_stats().replayed_ops - before;
  refrain::checkpoint(with(refrain::save_ops({"aten::add.Tensor"})), program).sum().backward();
  EXPECT_NE(refrain::tape_stats().replayed_ops - before - scalar, scalar);
}

TEST_F(Selective, Composition) {
  const int64_t none = replays(refrain::nothing_saveable());
  EXPECT_EQ(replays(refrain::and_then(refrain::save_ops({"aten::gelu"}), refrain::save_matmuls())), none - 4);
  const Policy never_mm = [](const OpContext& op) {
    return op.name() == "aten::mm" ? CheckpointPolicy::kMustRecompute : CheckpointPolicy::kPreferRecompute;
  };
  EXPECT_EQ(replays(refrain::and_then(never_mm, refrain::save_matmuls())), none);
}

TEST_F(Selective, ByModule) {
  Trial run(true);
  Tensor x = run.param({kSide, kSide});
  const auto replayed = [&](const Policy& policy) {
    const int64_t before = refrain::tape_stats().replayed_ops;
    refrain::checkpoint(with(policy),
                        [&] {
                          Tensor h = x;
                          for (const char* name : {"a", "a.b", "ab", "c"}) {
                            refrain::ModuleScope scope(name);
                            h = h.exp();
                          }
                          return h.neg();
                        })
        .sum()
        .backward();
    return refrain::tape_stats().replayed_ops - before;
  };
  const Policy all = refrain::everything_saveable(), none = refrain::nothing_saveable();
  EXPECT_EQ(replayed(none), 4);
  EXPECT_EQ(replayed(refrain::by_module({{"c", all}})), 3);
  EXPECT_EQ(replayed(refrain::by_module({{"a", all}})), 2) << "a and a.b, not ab";
  EXPECT_EQ(replayed(refrain::by_module({{"a", all}, {"a.b", none}})), 3) << "the longer prefix counts";
  EXPECT_EQ(replayed(refrain::by_module({{"a", none}}, all)), 2);
}

TEST_F(Selective, Names) {
  const auto named = [](const Policy& policy) {
    return expect_same([&](Trial& run) {
             Tensor x = run.param({kSide, kSide});
             return run
                 .region_with(with(policy),
                              [&] {
                                Tensor a = refrain::checkpoint_name(x.exp(), "a");
                                Tensor b = refrain::checkpoint_name(a.sin().exp(), "b");
                                return b.cos();
                              })
                 .sum();
           })
        .replayed;
  };
  EXPECT_EQ(named(refrain::save_matmuls()), 3) << "exp, sin, exp: names do nothing by themselves";
  EXPECT_EQ(named(refrain::save_only_these_names({"a"})), 2) << "sin, exp";
  EXPECT_EQ(named(refrain::save_only_these_names({"a", "b"})), 0);
  EXPECT_EQ(named(refrain::save_any_names_but_these({"a"})), 1) << "exp";
  EXPECT_EQ(named(refrain::save_any_names_but_these({})), 0);
  EXPECT_EQ(named(refrain::and_then(refrain::save_only_these_names({"a"}), refrain::save_ops({"aten::sin"}))), 1);
}

TEST_F(Selective, Marks) {
  const auto marked = [](CheckpointPolicy a, CheckpointPolicy b) {
    return expect_same([&](Trial& run) {
             Tensor x = run.param({kSide, kSide});
             return run
                 .region_with(with(refrain::save_ops({"aten::exp"})),
                              [&] {
                                Tensor h = refrain::set_policy(x.exp().sin(), a);
                                return refrain::set_policy(h.sin(), b).cos();
                              })
                 .sum();
           })
        .replayed;
  };
  EXPECT_EQ(marked(CheckpointPolicy::kMustRecompute, CheckpointPolicy::kMustRecompute), 2) << "both sines";
  EXPECT_EQ(marked(CheckpointPolicy::kMustRecompute, CheckpointPolicy::kMustSave), 1);
  EXPECT_EQ(marked(CheckpointPolicy::kMustSave, CheckpointPolicy::kPreferRecompute), 1);
  EXPECT_EQ(marked(CheckpointPolicy::kMustSave, CheckpointPolicy::kMustSave), 0);
}

TEST_F(Selective, NamesAndMarksOutsideRegionsDoNothing) {
  Tensor x = torch::rand({4});
  EXPECT_TRUE(refrain::checkpoint_name(x, "x").is_same(x));
  EXPECT_TRUE(refrain::set_policy(x, CheckpointPolicy::kMustSave).is_same(x));
  EXPECT_FALSE(refrain::set_policy(Tensor(), CheckpointPolicy::kMustSave).defined());
}

TEST_F(Selective, AnExceptionOfThePolicyPassesAndLeavesNothing) {
  const Live before = live();
  Tensor x = torch::rand({4}, torch::requires_grad());
  const Policy broken = [](const OpContext&) -> CheckpointPolicy { throw std::runtime_error("policy"); };
  EXPECT_THROW(refrain::checkpoint(with(broken), [&] { return x.exp().sin(); }), std::runtime_error);
  EXPECT_EQ(live(), before);
  expect_same(block_with(refrain::save_matmuls()));
}

TEST_F(Selective, ManyRegionsWithoutBackwardDoNotGrow) {
  Tensor x = torch::rand({4}, torch::requires_grad());
  const auto options = with(refrain::everything_saveable());
  const auto once = [&] { refrain::checkpoint(options, [&] { return x.exp().sin(); }); };
  once();
  const Live before = live();
  refrain::MemoryScope memory;
  for (int i = 0; i < 100'000; ++i) once();
  EXPECT_EQ(live(), before);
  EXPECT_EQ(memory.current(), 0);
}

TEST_F(Selective, RecomputingAndCheckpointingAreTold) {
  EXPECT_FALSE(refrain::is_checkpointing());
  EXPECT_FALSE(refrain::is_recomputing());
  Tensor x = torch::rand({4}, torch::requires_grad());
  bool inside = false, inside_recomputing = true;
  Tensor y = refrain::checkpoint([&] {
    inside = refrain::is_checkpointing();
    inside_recomputing = refrain::is_recomputing();
    return x.exp().sin();
  });
  EXPECT_TRUE(inside);
  EXPECT_FALSE(inside_recomputing);
  EXPECT_FALSE(refrain::is_checkpointing());
  y.sum().backward();
  EXPECT_FALSE(refrain::is_recomputing());
}

TEST_F(Selective, NoCheckpointGuardRunsPlainly) {
  Tensor x = torch::rand({4}, torch::requires_grad());
  const int64_t before = refrain::tape_stats().recorded_ops;
  {
    refrain::NoCheckpointGuard outer;
    { refrain::NoCheckpointGuard inner; }
    refrain::checkpoint([&] {
      EXPECT_FALSE(refrain::is_checkpointing());
      return x.exp().sin();
    })
        .sum()
        .backward();
  }
  EXPECT_EQ(refrain::tape_stats().recorded_ops, before);
  refrain::checkpoint([&] { return x.exp().sin(); }).sum().backward();
  EXPECT_EQ(refrain::tape_stats().recorded_ops, before + 2);
}

// As `linear` adds its bias: the bytes that a policy keeps are then those.
TEST_F(Selective, AKeptResultOverwrittenInPlaceIsNotReplayed) {
  const auto counts = expect_same([](Trial& run) {
    auto x = run.param({4, 4}), b = run.param({4});
    return run
        .region_with(CheckpointOptions().policy(refrain::save_ops({"aten::mm"})),
                     [&] {
                       auto h = x.mm(x);
                       h.add_(b);
                       return h.sin();
                     })
        .sum();
  });
  EXPECT_EQ(counts.replayed, 0);
}

// The operator has written when its policy throws: a function that goes on must get what is there.
TEST_F(Selective, AWriteWhosePolicyThrowsHasHappened) {
  auto x = torch::randn({4}).requires_grad_();
  const refrain::Policy policy = [](const refrain::OpContext& op) {
    if (op.name() == "aten::add_") throw std::runtime_error("no");
    return refrain::CheckpointPolicy::kPreferRecompute;
  };
  auto y = refrain::checkpoint(CheckpointOptions().policy(policy), [&] {
    auto h = x.sin();
    try {
      h.add_(1);
    } catch (const std::runtime_error&) {
    }
    return h.exp();
  });
  const auto expected = (y * x.cos()).detach();
  auto loss = y.sum();
  y.reset();
  poison_heap();
  loss.backward();
  expect_bit_equal(expected, x.grad());
}

// What autograd saved of it before must not be read as if nothing had been written.
TEST_F(Selective, AWriteWhosePolicyThrowsHasANewVersion) {
  auto x = torch::randn({4}).requires_grad_();
  const refrain::Policy policy = [](const refrain::OpContext& op) {
    if (op.name() == "aten::add_") throw std::runtime_error("no");
    return refrain::CheckpointPolicy::kPreferRecompute;
  };
  auto y = x.exp();  // saves its result
  const auto version = y._version();
  EXPECT_THROW(refrain::checkpoint(CheckpointOptions().policy(policy), [&] { return y.add_(1).sin(); }),
               std::runtime_error);
  EXPECT_EQ(y._version(), version + 1);
  EXPECT_THROW(y.sum().backward(), c10::Error) << "the gradient of exp read what add_ has written";
}

}  // namespace
}  // namespace refrain_test
