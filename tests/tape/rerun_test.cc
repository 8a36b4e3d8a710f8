// The rerun source: what only a second call of the function has. What both sources share is in conformance_test.cc.
#include <atomic>
#include <chrono>
#include <thread>

#include "memory/testing.h"
#include "refrain/memory.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointError;
using refrain::CheckpointOptions;
using refrain::CheckpointSource;
using refrain::DeterminismCheck;
using refrain::InvalidArgument;

struct Rerun : TapeTest {
  CheckpointOptions rerun = CheckpointOptions().source(CheckpointSource::kRerun);
  int64_t reruns() { return refrain::tape_stats().reruns; }
  Tensor x = torch::randn({3, 4}).requires_grad_();
  Tensor w = torch::randn({4, 4}).requires_grad_();
  Tensor big = torch::randn({64, 64}).requires_grad_();
};

TEST_F(Rerun, CallsTheFunctionAgainOnceAndGivesPlainGradients) {
  int calls = 0;
  const auto fn = [&](const Tensor& a, const Tensor& b) {
    ++calls;
    return a.mm(b).sin().mm(b).exp();
  };
  fn(x, w).sum().backward();
  const auto gx = x.grad().clone(), gw = w.grad().clone();
  x.mutable_grad().reset();
  w.mutable_grad().reset();
  calls = 0;
  auto y = refrain::checkpoint(rerun, fn, x, w);
  EXPECT_EQ(calls, 1);
  y.sum().backward();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(reruns(), 1);
  expect_bit_equal(gx, x.grad());
  expect_bit_equal(gw, w.grad());
  EXPECT_EQ(refrain::tape_stats().recorded_ops, 0);
}


TEST_F(Rerun, StopsAtTheLastTensorThatBackwardNeeds) {
  int finished = 0;
  const auto fn = [&](const Tensor& a) {
    auto y = a.sin().exp();
    auto z = y + 1;  // saves nothing
    ++finished;
    return z;
  };
  refrain::checkpoint(rerun, fn, x).sum().backward();
  EXPECT_EQ(finished, 1);
  refrain::checkpoint(CheckpointOptions(rerun).early_stop(false), fn, x).sum().backward();
  EXPECT_EQ(finished, 3);
  {
    refrain::EarlyStopGuard guard(false);
    refrain::checkpoint(rerun, fn, x).sum().backward();
  }
  EXPECT_EQ(finished, 5);
}

TEST_F(Rerun, AFunctionThatCatchesEverythingGoesOnToItsEnd) {
  int finished = 0;
  const auto fn = [&](const Tensor& a) {
    Tensor y;
    try {
      y = a.sin().exp();
    } catch (...) {
      y = a.sin();
    }
    ++finished;
    return y * 2;
  };
  fn(x).sum().backward();
  const auto expected = x.grad().clone();
  x.mutable_grad().reset();
  refrain::checkpoint(rerun, fn, x).sum().backward();
  EXPECT_EQ(finished, 3);
  expect_bit_equal(expected, x.grad());
}

TEST_F(Rerun, OtherShapesAreFound) {
  int calls = 0;
  const auto fn = [&](const Tensor& a) { return (calls++ ? a.narrow(0, 0, 2) : a).sin().exp(); };
  auto y = refrain::checkpoint(rerun, fn, x);
  const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("tensor 0 of 2 saved was Float[3, 4] in forward and Float[2, 4] when called again"), std::string::npos) << text;
}

TEST_F(Rerun, FewerOrMoreSavedTensorsAreFound) {
  int calls = 0;
  const auto fewer = [&](const Tensor& a) { return calls++ ? a.sin() : a.sin().exp().cos(); };
  auto y = refrain::checkpoint(rerun, fewer, x);
  auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("3 tensors were saved in forward, 1 when called again"), std::string::npos) << text;
  calls = 0;
  const auto more = [&](const Tensor& a) { return calls++ ? a.sin().exp().cos() : a.sin(); };
  y = refrain::checkpoint(CheckpointOptions(rerun).early_stop(false), more, x);
  text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("1 tensors were saved in forward, 3 when called again"), std::string::npos) << text;
}

// The order of two operators of one shape: only the operators tell.
TEST_F(Rerun, SwappedOperatorsAreFoundByTheStrictCheckAlone) {
  int calls = 0;
  const auto fn = [&](const Tensor& a) { return calls++ % 2 ? a.cos().sin().exp() : a.sin().cos().exp(); };
  EXPECT_NO_THROW(refrain::checkpoint(rerun, fn, x).sum().backward());
  const auto strict = CheckpointOptions(rerun).determinism_check(DeterminismCheck::kStrict);
  auto text = message_of<CheckpointError>([&] { refrain::checkpoint(strict, fn, x).sum().backward(); });
  EXPECT_NE(text.find("operator 0 was `aten::sin` in forward and `aten::cos` when called again"), std::string::npos) << text;
  EXPECT_NE(text.find("debug(true)"), std::string::npos) << text;
  text = message_of<CheckpointError>(
      [&] { refrain::checkpoint(CheckpointOptions(strict).debug(true), fn, x).sum().backward(); });
  EXPECT_NE(text.find("operators in forward:\n     0 aten::sin(Float[3, 4])\n     1 aten::cos(Float[3, 4])"),
            std::string::npos) << text;
  EXPECT_NE(text.find("operators when called again:\n     0 aten::cos(Float[3, 4])"), std::string::npos) << text;
}

TEST_F(Rerun, StrictAcceptsTheSameTwice) {
  const auto strict = CheckpointOptions(rerun).determinism_check(DeterminismCheck::kStrict);
  torch::nn::Sequential net(torch::nn::Linear(4, 4), torch::nn::BatchNorm1d(4), torch::nn::Dropout(0.5), torch::nn::Linear(4, 2));
  for (const bool early : {true, false})
    EXPECT_NO_THROW(refrain::checkpoint(CheckpointOptions(strict).early_stop(early), net, x).sum().backward());
  // Nothing stays behind that looks at operators.
  EXPECT_FALSE(c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Fake));
}

TEST_F(Rerun, WithoutACheckOnlyWhatIsMissingIsAnError) {
  int calls = 0;
  const auto none = CheckpointOptions(rerun).determinism_check(DeterminismCheck::kNone).early_stop(false);
  const auto more = [&](const Tensor& a) { return calls++ ? a.sin().exp() : a.sin(); };
  EXPECT_NO_THROW(refrain::checkpoint(none, more, x).sum().backward());
  calls = 0;
  const auto fewer = [&](const Tensor& a) { return calls++ ? a.sin() : a.sin().exp(); };
  auto y = refrain::checkpoint(none, fewer, x);
  EXPECT_THROW(y.sum().backward(), CheckpointError);
}

TEST_F(Rerun, ChangedInputsAndWeightsAreErrors) {
  auto data = torch::ones({3, 4});
  auto y = refrain::checkpoint(rerun, [](const Tensor& a, const Tensor& b) { return (a * b).sin(); }, data, x);
  data.add_(1);
  auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("input tensor 0 (Float[3, 4]) was changed since forward: it is at version 1, expected version 0"),
            std::string::npos) << text;
  y = refrain::checkpoint(rerun, [this](const Tensor& a) { return a.mm(w).sin(); }, x);  // `w` is captured, not given
  {
    torch::NoGradGuard no_grad;
    w.add_(1);
  }
  text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("a tensor that it read from outside in forward (Float[4, 4]) was changed since"), std::string::npos)
      << text;
}

TEST_F(Rerun, WhatCannotBeIsRefused) {
  const auto fn = [](const std::unique_ptr<int>&, const Tensor& a) { return a.sin(); };
  EXPECT_NE(message_of<InvalidArgument>([&] { refrain::checkpoint(rerun, fn, std::make_unique<int>(1), x); })
                .find("cannot be copied"), std::string::npos);
  EXPECT_NO_THROW(refrain::checkpoint(fn, std::make_unique<int>(1), x));
  const auto sin = [](const Tensor& a) { return a.sin(); };
  EXPECT_THROW(refrain::checkpoint(CheckpointOptions(rerun).policy(refrain::save_matmuls()), sin, x), InvalidArgument);
  const auto contexts = CheckpointOptions().context_fn([] { return std::pair<refrain::ContextScope, refrain::ContextScope>(); });
  EXPECT_THROW(refrain::checkpoint(contexts, sin, x), InvalidArgument);
}

// Its arguments are what they were before the first call, even if that changed its own.
TEST_F(Rerun, ArgumentsAreCopiesFromBefore) {
  std::vector<float> factors{1, 2};
  const auto fn = [](std::vector<float>& list, const Tensor& a) {
    list.push_back(3);
    Tensor y = a;
    for (const float factor : list) y = (y * factor).sin();
    return y;
  };
  auto y = refrain::checkpoint(rerun, fn, factors, x);
  EXPECT_EQ(factors.size(), 3U);
  EXPECT_NO_THROW(y.sum().backward());
  EXPECT_EQ(factors.size(), 3U);
}

struct Pair {
  Tensor left, right;
};
template <typename Visit>
void visit_tensors(Pair& pair, const Visit& visit) {
  visit(pair.left);
  visit(pair.right);
}

// Tensors in containers and in types with `visit_tensors` go through the enclosing region, which drops them.
TEST_F(Rerun, NestedRegionsHoldNoInputsOfTheirOwn) {
  const auto held = [&](auto&& inner) {
    refrain::MemoryScope memory;
    auto y = refrain::checkpoint(rerun, [&](const Tensor& a) {
      Tensor h = a;
      for (int i = 0; i < 8; ++i) h = inner(h.sin().clone());
      return h.sum();
    }, big);
    const auto bytes = memory.current();
    y.backward();
    return bytes;
  };
  const auto bytes_of_input = static_cast<int64_t>(big.nbytes());
  EXPECT_LT(held([&](const Tensor& h) { return refrain::checkpoint([](const Tensor& t) { return t.exp().sin(); }, h); }),
            bytes_of_input);
  EXPECT_LT(held([&](const Tensor& h) {
    return refrain::checkpoint([](const Pair& p) { return p.left.exp() * p.right.sin(); }, Pair{h, h});
  }), bytes_of_input);
  EXPECT_LT(held([&](const Tensor& h) {
    return refrain::checkpoint([](const std::map<std::string, std::vector<Tensor>>& m) { return m.at("h")[0].exp().sin(); },
                               std::map<std::string, std::vector<Tensor>>{{"h", {h}}});
  }), bytes_of_input);
}

TEST_F(Rerun, AnExceptionInTheSecondCallLeavesAllAsItWas) {
  bool fail = true;
  int calls = 0;
  const auto fn = [&](const Tensor& a) {
    auto y = torch::dropout(a.sin(), 0.5, true);
    if (calls++ && fail) throw std::runtime_error("second call");
    return y.exp();
  };
  auto y = refrain::checkpoint(rerun, fn, x);
  const auto generator = bytes_of(at::detail::getDefaultCPUGenerator().get_state());
  auto loss = y.sum();
  EXPECT_EQ(message_of<std::runtime_error>([&] { loss.backward({}, true); }), "second call");
  EXPECT_EQ(bytes_of(at::detail::getDefaultCPUGenerator().get_state()), generator);
  EXPECT_FALSE(refrain::is_recomputing());
  fail = false;
  x.mutable_grad().reset();
  loss.backward();
  auto gradient = x.grad();
  torch::manual_seed(7);  // as SetUp, then the two inputs drawn
  EXPECT_TRUE(gradient.defined());
  EXPECT_EQ(bytes_of(at::detail::getDefaultCPUGenerator().get_state()).size(), generator.size());
}

TEST_F(Rerun, ContextsAreEnteredAroundEachCall) {
  std::vector<std::string> log;
  const auto scope = [&log](const std::string& name) -> refrain::ContextScope {
    return [&log, name] {
      log.push_back("enter " + name);
      return std::shared_ptr<void>(nullptr, [&log, name](void*) { log.push_back("leave " + name); });
    };
  };
  int asked = 0;
  const auto options = CheckpointOptions(rerun).context_fn([&] {
    ++asked;
    return std::pair(scope("forward"), scope("again"));
  });
  auto y = refrain::checkpoint(options, [&](const Tensor& a) {
    log.emplace_back("call");
    return a.sin().exp();
  }, x);
  y.sum().backward();
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(log, (std::vector<std::string>{"enter forward", "call", "leave forward", "enter again", "call", "leave again"}));
}

// Tensors that one node saves twice, or a second look in the same backward, do not call the function again.
TEST_F(Rerun, OneCallABackward) {
  auto y = refrain::checkpoint(rerun, [](const Tensor& a) {
    auto s = a.sin();
    return s * s + s.exp() * s;
  }, x).sum();
  y.backward({}, true);
  EXPECT_EQ(reruns(), 1);
  y.backward({}, true);
  y.backward();
  EXPECT_EQ(reruns(), 3);
}

// An operator without a saved tensor of its own: the strict check sees that it got another shape.
TEST_F(Rerun, TheStrictCheckComparesShapesOfOperators) {
  int calls = 0;
  const auto fn = [&](const Tensor& a) { return (a * torch::ones({calls++ ? 3 : 2}).sum().item<double>()).sin(); };
  auto y = refrain::checkpoint(CheckpointOptions(rerun).determinism_check(DeterminismCheck::kStrict), fn, x);
  const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("had tensors of other sizes or dtypes when called again"), std::string::npos) << text;
}

TEST_F(Rerun, AnErrorThatTheFunctionCatchesIsNotForgotten) {
  int calls = 0;
  const auto fn = [&](const Tensor& a) {
    Tensor y;
    try {
      y = (calls++ ? a.narrow(0, 0, 2) : a).sin();
    } catch (const std::exception&) {
      y = a.sin();
    }
    return y.exp();
  };
  auto y = refrain::checkpoint(rerun, fn, x);
  const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("tensor 0 of 2 saved"), std::string::npos) << text;
}

TEST_F(Rerun, TheSecondCallIsNoPartOfARegionThatIsOpen) {
  std::vector<bool> inside;
  auto y = refrain::checkpoint(rerun, [&](const Tensor& a) {
    inside.push_back(refrain::is_checkpointing());
    return a.sin().exp();
  }, x).sum();
  refrain::checkpoint([&] { return torch::autograd::grad({y}, {x})[0]; });
  EXPECT_EQ(inside, (std::vector<bool>{true, false}));
}

TEST_F(Rerun, FunctionsAreCalledAgainOneAtATime) {
  std::atomic<int> inside{0}, most{0};
  const auto fn = [&](const Tensor& a) {
    if (refrain::is_recomputing()) {
      most = std::max(most.load(), ++inside);
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
    }
    auto y = a.sin();
    if (refrain::is_recomputing()) --inside;
    return y.exp();
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] { refrain::checkpoint(rerun, fn, torch::randn({3}).requires_grad_()).sum().backward(); });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
}

// Found by random programs. rrelu saves the noise before its kernel writes it.
TEST_F(Rerun, TheLastOperatorWritesWhatItSavedBeforeTheFunctionIsStopped) {
  const auto fn = [](const Tensor& a) { return torch::rrelu(a, 0.1, 0.4, true); };
  torch::manual_seed(3);
  fn(x).sum().backward();
  const auto expected = x.grad().clone();
  x.mutable_grad().reset();
  torch::manual_seed(3);
  auto y = refrain::checkpoint(rerun, fn, x);
  poison_heap();
  y.sum().backward();
  expect_bit_equal(expected, x.grad());
}

// Found by random programs under caps: the error of an operator that had yet to write what it saved passed for the end of the second call.
TEST_F(Rerun, AnErrorOfTheLastOperatorIsOneWhereItWritesWhatItSaved) {
  const auto fn = [](const Tensor& a) { return torch::rrelu(a, 0.1, 0.4, true); };
  torch::manual_seed(3);
  fn(x).sum().backward();
  const auto expected = x.grad().clone();
  int failures = 0;
  for (int n = 1;; ++n) {
    x.mutable_grad().reset();
    torch::manual_seed(3);
    auto y = refrain::checkpoint(rerun, fn, x).sum();
    refrain::memory_testing::fail_nth_allocation(n);
    bool failed = false;
    try {
      y.backward();
    } catch (const c10::OutOfMemoryError&) {
      failed = true;
    }
    const bool fired = refrain::memory_testing::failure_fired();
    refrain::memory_testing::fail_nth_allocation(0);
    EXPECT_EQ(failed, fired) << "allocation " << n;
    if (!failed) expect_bit_equal(expected, x.grad());
    if (!fired) break;
    ++failures;
  }
  EXPECT_GT(failures, 3);
}

struct SavesItsResult : torch::autograd::Function<SavesItsResult> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& a) {
    Tensor y = a.tanh();
    ctx->save_for_backward({y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list g) {
    const Tensor y = ctx->get_saved_variables()[0];
    return {g[0] * (1 - y * y)};
  }
};

TEST_F(Rerun, ACustomFunctionIsNotStoppedWhileItSaves) {
  refrain::MemoryScope memory;
  {
    auto y = refrain::checkpoint(rerun, [](const Tensor& a) { return SavesItsResult::apply(a); }, big);
    torch::autograd::grad({y.sum()}, {big});
  }
  EXPECT_EQ(memory.current(), 0);
}

TEST_F(Rerun, WhatTheSecondCallOverwritesIsAnError) {
  const auto fn = [](const Tensor& a) {
    auto y = torch::atan2(a, a + 2);
    auto g = torch::autograd::grad({torch::atan2(y, a).sum()}, {a}, {}, true, true)[0];
    y.div_(g + 3);  // the graph of `g` has saved it
    return y.sin() + g;
  };
  EXPECT_THROW(fn(x).sum().backward(), c10::Error) << "plain autograd";
  EXPECT_THROW(refrain::checkpoint(rerun, fn, x).sum().backward(), CheckpointError);
  flush_engine();
}

TEST_F(Rerun, ABackwardInsideRunsTheFunctionNoFurtherThanItHasCome) {
  const auto fn = [](const Tensor& a) {
    auto y = a * 1.5;
    auto g = torch::autograd::grad({y.sin().sum()}, {a}, {}, true)[0];
    y.mul_(0.5);
    return y * g;
  };
  const auto plain = fn(x);
  const auto expected = torch::autograd::grad({plain.sum()}, {x})[0];
  auto y = refrain::checkpoint(CheckpointOptions(rerun).early_stop(false), fn, x);
  expect_bit_equal(plain, y);
  expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
}

// It says that it requires a gradient, since its base does, but operators see no edge.
TEST_F(Rerun, AViewFromNoGradComesBackAsOne) {
  const auto fn = [this](const Tensor& view) {
    auto y = torch::atan2(view, view + 2);
    y.mul_(view);
    return x.sin().exp();
  };
  auto base = torch::randn({3, 4}).requires_grad_();
  const auto loss = [&](bool recorded) {
    Tensor view;
    {
      torch::NoGradGuard no_grad;
      view = base.narrow(0, 0, 2);
    }
    return recorded ? refrain::checkpoint(rerun, fn, view).sum() : fn(view).sum();
  };
  const auto expected = torch::autograd::grad({loss(false)}, {x})[0];
  expect_bit_equal(expected, torch::autograd::grad({loss(true)}, {x})[0]);
  const auto nested = refrain::checkpoint([&] { return loss(true); });
  expect_bit_equal(expected, torch::autograd::grad({nested}, {x})[0]);
}

TEST_F(Rerun, AnArgumentThatAutogradRefusesIsNoErrorUntilItIsUsed) {
  auto base = x * 1.5;
  Tensor view;
  {
    torch::NoGradGuard no_grad;
    view = base.narrow(0, 0, 2);
  }
  base.mul_(2);
  EXPECT_THROW(view.grad_fn(), c10::Error);
  const auto fn = [](const Tensor& a, const Tensor&) { return a.sin().exp(); };
  const auto expected = torch::autograd::grad({fn(x, view).sum()}, {x})[0];
  expect_bit_equal(expected, torch::autograd::grad({refrain::checkpoint(rerun, fn, x, view).sum()}, {x})[0]);
}

// Replay as well: what a backward with `create_graph` saves again is the same tensor to autograd.
TEST_F(Rerun, WhatABackwardSavesAgainIsAnErrorOnceOverwritten) {
  for (const int which : {0, 1, 2}) {
    auto h = x * 1.5;
    const auto fn = [](const Tensor& a) { return a.sin(); };
    auto y = which == 0 ? fn(h) : refrain::checkpoint(which == 1 ? CheckpointOptions() : rerun, fn, h);
    auto g = torch::autograd::grad({y.sum()}, {h}, {}, true, true)[0];
    h.detach().add_(1);
    EXPECT_THROW(g.sum().backward(), c10::Error) << which;
    flush_engine();
  }
}

}  // namespace
}  // namespace refrain_test
