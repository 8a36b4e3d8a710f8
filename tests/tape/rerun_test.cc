// The rerun source: what only a second call of the function has. What both sources share is in conformance_test.cc.
#include <ATen/CPUGeneratorImpl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "memory/testing.h"
#include "refrain/memory.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointError;
using refrain::CheckpointOptions;
using refrain::DeterminismCheck;
using refrain::InvalidArgument;
using refrain::RecomputeMode;

struct Rerun : TapeTest {
  CheckpointOptions rerun = CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction);
  CheckpointOptions loose = CheckpointOptions(rerun).determinism_check(DeterminismCheck::kDefault);
  int64_t reruns() { return refrain::tape_stats().reruns; }
  /// The result of `fn(x, more...)` and its gradient are those of a plain call.
  template <typename F, typename... More>
  void expect_same_as_plain(const F& fn, More... more) {
    const auto expected = fn(x, more...);
    const auto gradient = torch::autograd::grad({expected.sum()}, {x})[0];
    const auto y = refrain::checkpoint(rerun, fn, x, more...);
    expect_bit_equal(expected, y);
    expect_bit_equal(gradient, torch::autograd::grad({y.sum()}, {x})[0]);
  }
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
  auto y = refrain::checkpoint(loose, fn, x);
  const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("saved tensor 0 of 2 was Float[3, 4] in forward and Float[2, 4] in the rerun"), std::string::npos)
      << text;
}

TEST_F(Rerun, FewerOrMoreSavedTensorsAreFound) {
  int calls = 0;
  const auto fewer = [&](const Tensor& a) { return calls++ ? a.sin() : a.sin().exp().cos(); };
  auto y = refrain::checkpoint(loose, fewer, x);
  auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("3 tensors were saved in forward, 1 in the rerun"), std::string::npos) << text;
  calls = 0;
  const auto more = [&](const Tensor& a) { return calls++ ? a.sin().exp().cos() : a.sin(); };
  y = refrain::checkpoint(CheckpointOptions(loose).early_stop(false), more, x);
  text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("1 tensors were saved in forward, 3 in the rerun"), std::string::npos) << text;
}

// The order of two operators of one shape: only the operators tell.
TEST_F(Rerun, SwappedOperatorsAreFoundByTheStrictCheckAlone) {
  int calls = 0;
  const auto fn = [&](const Tensor& a) { return calls++ % 2 ? a.cos().sin().exp() : a.sin().cos().exp(); };
  EXPECT_NO_THROW(refrain::checkpoint(loose, fn, x).sum().backward());
  const auto& strict = rerun;
  auto text = message_of<CheckpointError>([&] { refrain::checkpoint(strict, fn, x).sum().backward(); });
  EXPECT_NE(text.find("operator 0 was `aten::sin` in forward and `aten::cos` in the rerun"), std::string::npos) << text;
  EXPECT_NE(text.find("debug(true)"), std::string::npos) << text;
  text = message_of<CheckpointError>(
      [&] { refrain::checkpoint(CheckpointOptions(strict).debug(true), fn, x).sum().backward(); });
  EXPECT_NE(text.find("operators in forward:\n     0 aten::sin(Float[3, 4])\n     1 aten::cos(Float[3, 4])"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("operators in the rerun:\n     0 aten::cos(Float[3, 4])"), std::string::npos) << text;
}

TEST_F(Rerun, StrictAcceptsTheSameTwice) {
  const auto strict = CheckpointOptions(rerun).determinism_check(DeterminismCheck::kStrict);
  torch::nn::Sequential net(torch::nn::Linear(4, 4), torch::nn::BatchNorm1d(4), torch::nn::Dropout(0.5),
                            torch::nn::Linear(4, 2));
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
  auto y = refrain::checkpoint(
      rerun, [](const Tensor& a, const Tensor& b) { return (a * b).sin(); }, data, x);
  data.add_(1);
  auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("input tensor 0 (Float[3, 4]) was changed since forward: it is at version 1, expected version 0"),
            std::string::npos)
      << text;
  y = refrain::checkpoint(
      rerun, [this](const Tensor& a) { return a.mm(w).sin(); }, x);  // `w` is captured, not given
  {
    torch::NoGradGuard no_grad;
    w.add_(1);
  }
  text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("a tensor that it read from outside in forward (Float[4, 4]) was changed since"),
            std::string::npos)
      << text;
}

TEST_F(Rerun, WhatCannotBeIsRefused) {
  const auto fn = [](const std::unique_ptr<int>&, const Tensor& a) { return a.sin(); };
  EXPECT_NE(message_of<InvalidArgument>([&] {
              refrain::checkpoint(rerun, fn, std::make_unique<int>(1), x);
            }).find("cannot be copied"),
            std::string::npos);
  EXPECT_NO_THROW(refrain::checkpoint(fn, std::make_unique<int>(1), x));
  const auto sin = [](const Tensor& a) { return a.sin(); };
  EXPECT_THROW(refrain::checkpoint(CheckpointOptions(rerun).policy(refrain::save_matmuls()), sin, x), InvalidArgument);
  const auto contexts =
      CheckpointOptions().context_fn([] { return std::pair<refrain::ContextScope, refrain::ContextScope>(); });
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
    auto y = refrain::checkpoint(
        rerun,
        [&](const Tensor& a) {
          Tensor h = a;
          for (int i = 0; i < 8; ++i) h = inner(h.sin().clone());
          return h.sum();
        },
        big);
    const auto bytes = memory.current();
    y.backward();
    return bytes;
  };
  const auto bytes_of_input = static_cast<int64_t>(big.nbytes());
  EXPECT_LT(
      held([&](const Tensor& h) { return refrain::checkpoint([](const Tensor& t) { return t.exp().sin(); }, h); }),
      bytes_of_input);
  EXPECT_LT(held([&](const Tensor& h) {
              return refrain::checkpoint([](const Pair& p) { return p.left.exp() * p.right.sin(); }, Pair{h, h});
            }),
            bytes_of_input);
  EXPECT_LT(held([&](const Tensor& h) {
              return refrain::checkpoint(
                  [](const std::map<std::string, std::vector<Tensor>>& m) { return m.at("h")[0].exp().sin(); },
                  std::map<std::string, std::vector<Tensor>>{{"h", {h}}});
            }),
            bytes_of_input);
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
  auto y = refrain::checkpoint(
      options,
      [&](const Tensor& a) {
        log.emplace_back("call");
        return a.sin().exp();
      },
      x);
  y.sum().backward();
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(log,
            (std::vector<std::string>{"enter forward", "call", "leave forward", "enter again", "call", "leave again"}));
}

// Tensors that one node saves twice, or a second look in the same backward, do not call the function again.
TEST_F(Rerun, OneCallABackward) {
  auto y = refrain::checkpoint(
               rerun,
               [](const Tensor& a) {
                 auto s = a.sin();
                 return s * s + s.exp() * s;
               },
               x)
               .sum();
  y.backward({}, true);
  EXPECT_EQ(reruns(), 1);
  y.backward({}, true);
  y.backward();
  EXPECT_EQ(reruns(), 3);
}

// Of two results, so that no lock of an autograd node keeps the backwards apart.
TEST_F(Rerun, BackwardsOfTwoThreadsCallTheFunctionOneAfterTheOther) {
  std::atomic<int> inside = 0, most = 0, calls = 0;
  const auto results = refrain::checkpoint(
      rerun,
      [&](const Tensor& a) {
        most = std::max<int>(most, ++inside);
        ++calls;
        if (refrain::is_recomputing()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
        const auto y = a.sin().exp(), z = a.cos().tanh();
        --inside;
        return std::vector<Tensor>{y, z};
      },
      x);
  const Tensor sums[] = {results[0].sum(), results[1].sum()};
  const Tensor expected[] = {torch::autograd::grad({x.sin().exp().sum()}, {x})[0],
                             torch::autograd::grad({x.cos().tanh().sum()}, {x})[0]};
  Tensor gradients[2];
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 2; ++i)
    threads.emplace_back(
        [&, i] { gradients[i] = torch::autograd::grad({sums[i]}, {x}, {}, /*retain_graph=*/true)[0]; });
  for (auto& thread : threads) thread.join();
  for (size_t i = 0; i < 2; ++i) expect_bit_equal(expected[i], gradients[i]);
  EXPECT_EQ(calls, 3) << "once in forward, and once for each backward";
  EXPECT_EQ(most, 1);
}

// An operator without a saved tensor of its own: the strict check sees that it got another shape.
TEST_F(Rerun, TheStrictCheckComparesShapesOfOperators) {
  int calls = 0;
  const auto two = torch::ones({2}), three = torch::ones({3});
  const auto fn = [&](const Tensor& a) { return (a * (calls++ ? three : two).sum().item<double>()).sin(); };
  auto y = refrain::checkpoint(CheckpointOptions(rerun).determinism_check(DeterminismCheck::kStrict), fn, x);
  const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("had tensors of other sizes, strides or dtypes in the rerun"), std::string::npos) << text;
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
  auto y = refrain::checkpoint(loose, fn, x);
  const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(text.find("saved tensor 0 of 2"), std::string::npos) << text;
}

TEST_F(Rerun, TheSecondCallIsNoPartOfARegionThatIsOpen) {
  std::vector<bool> inside;
  auto y = refrain::checkpoint(
               rerun,
               [&](const Tensor& a) {
                 inside.push_back(refrain::is_checkpointing());
                 return a.sin().exp();
               },
               x)
               .sum();
  refrain::checkpoint([&] { return torch::autograd::grad({y}, {x})[0]; });
  EXPECT_EQ(inside, (std::vector<bool>{true, false}));
}

/// Lets two threads pass together. @return false if the other does not come.
class Meeting {
 public:
  bool meet() {
    std::unique_lock lock(mutex_);
    const auto round = round_;
    if (++here_ == 2) {
      here_ = 0;
      ++round_;
      both_.notify_all();
      return true;
    }
    return both_.wait_for(lock, std::chrono::seconds(20), [&] { return round_ != round; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable both_;
  int here_ = 0, round_ = 0;
};

// Each draws from the default generator between meetings, in the second call too, and another mask would be another gradient.
TEST_F(Rerun, FunctionsOnTwoThreadsMayWaitForEachOtherAndDrawWhatTheyDrew) {
  for (const bool seeds : {false, true}) {
    Meeting meeting;
    std::atomic<int> wrong = 0, missed = 0;
    std::vector<std::thread> threads;
    for (int id = 0; id < 2; ++id) {
      threads.emplace_back([&, id] {
        const auto fn = [&, id](const Tensor& a) {
          Tensor y = a;
          for (int i = 0; i < 8; ++i) {
            if (seeds && i == 3) {  // while nobody draws
              if (id == 0) torch::manual_seed(5);
              missed += !meeting.meet();
            }
            y = at::dropout(y, 0.2, true);
            missed += !meeting.meet();
          }
          return y;
        };
        for (int step = 0; step < 5; ++step) {
          auto a = torch::ones({64}).requires_grad_();
          const auto y = refrain::checkpoint(CheckpointOptions(rerun).early_stop(false), fn, a);
          y.sum().backward();
          wrong += !a.grad().equal(y.detach());
        }
      });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(missed, 0);
    EXPECT_EQ(wrong, 0) << (seeds ? "one seeds the generator itself" : "");
  }
}

TEST_F(Rerun, WhoDrawsMeanwhileOnAnotherThreadGetsTheNumbersThatComeNext) {
  Meeting meeting;
  torch::manual_seed(3);
  auto y = refrain::checkpoint(
      CheckpointOptions(rerun).early_stop(false),
      [&](const Tensor& a) {
        auto first = at::dropout(a, 0.5, true);
        if (refrain::is_recomputing()) {
          EXPECT_TRUE(meeting.meet() && meeting.meet());
        }
        return at::dropout(first, 0.5, true);
      },
      x);
  const auto state = at::detail::getDefaultCPUGenerator().get_state();
  const auto next = torch::rand({5}), after = torch::rand({5});
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_state(state);
  Tensor drawn;
  std::thread other([&] {
    EXPECT_TRUE(meeting.meet());
    drawn = torch::rand({5});
    EXPECT_TRUE(meeting.meet());
  });
  y.sum().backward();
  other.join();
  expect_bit_equal(next, drawn);
  expect_bit_equal(after, torch::rand({5}));
  expect_bit_equal(y.ne(0), x.grad().ne(0));
}

// Neither an argument nor a default one.
TEST_F(Rerun, ACapturedGeneratorDrawsTheSameAgain) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  auto y = refrain::checkpoint(
      rerun,
      [generator](const Tensor& a) {
        return a.exp() * at::empty({3, 4}).bernoulli_(0.5, generator);
      },
      x);
  const auto state = bytes_of(generator.get_state());
  y.sum().backward();
  expect_bit_equal(y.ne(0), x.grad().ne(0));
  EXPECT_EQ(state, bytes_of(generator.get_state()));
}

// It reads a state that it then goes back to, as one does that tries something out.
TEST_F(Rerun, AFunctionThatHandlesAGeneratorFindsItAsItWas) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const auto fn = [&generator](const Tensor& a) {
    const auto state = generator.get_state();
    const auto first = torch::rand({3, 4}, generator);
    generator.set_state(state);
    const auto second = torch::rand({3, 4}, generator);
    return a.exp() * (first + second) * state.slice(0, 0, 64).to(torch::kFloat).sum();
  };
  const auto start = generator.get_state();
  const auto expected = torch::autograd::grad({fn(x).sum()}, {x})[0];
  generator.set_state(start);
  const auto y = refrain::checkpoint(loose, fn, x);
  torch::rand({5000}, generator);
  const auto state = bytes_of(generator.get_state());
  expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
  EXPECT_EQ(state, bytes_of(generator.get_state()));
}

struct RunsAnOperatorAtItsEnd {
  Tensor a;
  [[gnu::noinline]] ~RunsAnOperatorAtItsEnd() { a.detach().exp(); }
};

// The exception that stops a second call early would be the end of the process.
// Inlined, it would not be seen: see `CheckpointOptions::early_stop`.
[[gnu::noinline]] Tensor nothrow_helper(const Tensor& t) noexcept {
  auto y = t.sin().exp();
  return (y + 1) * 1;
}

TEST_F(Rerun, WhereNothingCanBeThrownThroughTheFunctionRunsOn) {
  const auto expected = torch::autograd::grad({x.sin().exp().sum()}, {x})[0];
  int finished = 0;
  const auto nothrow = [&](const Tensor& a) noexcept {
    auto y = a.sin().exp();
    auto z = y + 1;
    ++finished;
    return z;
  };
  const auto inner = [&](const Tensor& a) {
    auto z = nothrow_helper(a);
    z = z + 1;
    ++finished;
    return z;
  };
  const auto destructor = [&](const Tensor& a) {
    Tensor y;
    {
      const RunsAnOperatorAtItsEnd end{a};
      y = a.sin().exp();
    }
    ++finished;
    return y;
  };
  for (const std::function<Tensor(const Tensor&)>& fn : {std::function<Tensor(const Tensor&)>(inner), {destructor}}) {
    finished = 0;
    expect_bit_equal(expected, torch::autograd::grad({refrain::checkpoint(rerun, fn, x).sum()}, {x})[0]);
    EXPECT_GE(finished, 1);
  }
  finished = 0;
  expect_bit_equal(expected, torch::autograd::grad({refrain::checkpoint(rerun, nothrow, x).sum()}, {x})[0]);
  EXPECT_EQ(finished, 2);
  for (const auto& options : {rerun, loose}) {
    const auto other = [calls = std::make_shared<int>(0)](const Tensor& a) noexcept {
      return ((*calls)++ ? a.narrow(0, 0, 2) : a).sin().exp();
    };
    auto y = refrain::checkpoint(options, other, x);
    EXPECT_THROW(y.sum().backward(), CheckpointError);
    flush_engine();
  }
}

// Found by random programs. The second call begins while the first is under way, and goes on to where the first has not come yet: it has
// more operators, and what it draws there is for the first to draw.
TEST_F(Rerun, ABackwardInsideAFunctionThatCannotBeStoppedLeavesTheFirstCallItsNumbers) {
  const auto fn = [](const Tensor& a, bool draw_first) noexcept {
    auto y = draw_first ? at::dropout(a, 0.5, true) : a;
    y = y.exp();
    const auto inside = torch::autograd::grad({y.sum()}, {a}, {}, /*retain_graph=*/true)[0];
    return at::dropout(y * inside, 0.5, true) * torch::rand({3, 4});
  };
  for (const bool draw_first : {false, true}) {
    torch::manual_seed(3);
    const auto expected = fn(x, draw_first);
    const auto gradient = torch::autograd::grad({expected.sum()}, {x})[0];
    const auto next = torch::rand({3});
    for (const auto& options : {rerun, loose, CheckpointOptions(rerun).early_stop(false)}) {
      torch::manual_seed(3);
      const auto y = refrain::checkpoint(options, fn, x, draw_first);
      expect_bit_equal(expected, y);
      expect_bit_equal(gradient, torch::autograd::grad({y.sum()}, {x})[0]);
      expect_bit_equal(next, torch::rand({3}));
    }
  }
}

// What it gets back is overwritten by the function at a place where the first call has not come yet.
TEST_F(Rerun, ABackwardInsideAFunctionThatCannotBeStoppedReadsWhatIsOverwrittenLater) {
  const auto fn = [](const Tensor& a) noexcept {
    auto y = a.exp();
    const auto inside = torch::autograd::grad({y.sum()}, {a}, {}, /*retain_graph=*/true)[0];
    const auto z = y.detach().mul_(2);  // no gradient of the result needs `y` any more
    return a.sin() * inside * z;
  };
  expect_same_as_plain(fn);
}

// The same through a pointer, where no operator tells.
TEST_F(Rerun, ABackwardInsideAFunctionThatCannotBeStoppedReadsWhatAPointerOverwritesLater) {
  const auto fn = [](const Tensor& a) noexcept {
    auto y = a.exp();
    const auto inside = torch::autograd::grad({y.sum()}, {a}, {}, /*retain_graph=*/true)[0];
    auto* const p = y.mutable_data_ptr<float>();
    for (int i = 0; i < 12; ++i) p[i] *= 2;
    return a.sin() * inside * y.detach();
  };
  expect_same_as_plain(fn);
}

// What was filled in parts by operators is whole when it is saved; what was filled by a pointer is, once an operator
// moves its version.
TEST_F(Rerun, ABackwardInsideStopsTheFunctionBeforeAPointerOverwrites) {
  const auto run = [](const Tensor& a, bool by_pointer) {
    auto buffer = at::empty({3, 4});
    if (by_pointer) {
      auto* const p = buffer.mutable_data_ptr<float>();
      for (int i = 0; i < 12; ++i) p[i] = 0.1F * static_cast<float>(i);
    } else {
      for (int i = 0; i < 3; ++i) buffer[i].fill_(i + 1);
    }
    auto y = a.exp();
    const auto slope = torch::autograd::grad({(y * buffer).sum()}, {a}, {}, /*retain_graph=*/true)[0];
    if (by_pointer) buffer[1].fill_(3);
    auto* const q = y.mutable_data_ptr<float>();
    for (int i = 0; i < 12; ++i) q[i] *= 2;
    return a * slope + buffer + y.detach();
  };
  for (const bool by_pointer : {true, false}) expect_same_as_plain(run, by_pointer);
}

/// Its backward runs a backward of its own, as a layer does that solves or differentiates inside.
struct DifferentiatesInBackward : torch::autograd::Function<DifferentiatesInBackward> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& a) {
    ctx->save_for_backward({a});
    return a.sin();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const auto a = ctx->get_saved_variables()[0];
    const at::AutoGradMode grad_mode(true);
    const auto inner = a.detach().requires_grad_();
    const auto slope =
        torch::autograd::grad({inner.cos().tanh().sum()}, {inner}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
    const auto curve = torch::autograd::grad({slope.sum()}, {inner})[0];
    return {gradients[0] * (a.cos() + 0.1 * slope.detach() + 0.1 * curve)};
  }
};

// Found by random programs. Its node is at work, and locked, when what it has saved is asked for: to call the function again would run
// into that lock.
TEST_F(Rerun, ABackwardInsideReadsWhatItHasSavedItself) {
  const auto outside = DifferentiatesInBackward::apply(x);
  const auto fn = [&](const Tensor& a) {
    const auto inside =
        torch::autograd::grad({(outside * a).sum()}, {a, x}, {}, /*retain_graph=*/true, /*create_graph=*/true);
    const auto y = (inside[0] * inside[1]).tanh();
    return y + torch::autograd::grad({y.sum()}, {a}, {}, /*retain_graph=*/true)[0];
  };
  const auto a = torch::rand({3, 4}).requires_grad_();
  const auto expected = fn(a);
  const auto gradient = torch::autograd::grad({expected.sum()}, {a}, {}, /*retain_graph=*/true)[0];
  for (const auto& options : {rerun, loose, CheckpointOptions(rerun).early_stop(false)}) {
    const auto y = refrain::checkpoint(options, fn, a);
    expect_bit_equal(expected, y);
    expect_bit_equal(gradient, torch::autograd::grad({y.sum()}, {a}, {}, /*retain_graph=*/true)[0]);
  }
}

// The operator may have drawn from the state before, or from the seeded one.
TEST_F(Rerun, AnOperatorThatDrawsWhileAnotherThreadSeedsIsRefusedByName) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  std::atomic<bool> stop = false, drawing = false;
  auto y = [&] {
    std::thread other([&] {
      while (!drawing) std::this_thread::yield();
      for (uint64_t seed = 4; !stop; ++seed) {
        std::lock_guard lock(generator.mutex());
        generator.set_current_seed(seed);
      }
    });
    auto result = refrain::checkpoint(
        rerun,
        [&](const Tensor& a) {
          drawing = true;
          auto numbers = torch::empty({2000000});
          for (int i = 0; i < 20; ++i) numbers.bernoulli_(0.5, generator);
          return a.exp() * numbers[0];
        },
        x);
    stop = true;
    other.join();
    return result;
  }();
  const auto message = message_of<CheckpointError>([&] { y.sum().backward(); });
  EXPECT_NE(message.find("while another thread drew from the same generator"), std::string::npos) << message;
  flush_engine();
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

// LibTorch resolves the negative view by an operator of its own, between what is saved and what writes the noise.
TEST_F(Rerun, TheFunctionIsNotStoppedByOperatorsThatPrepareTheLastOne) {
  const auto c = torch::randn({16}, torch::kComplexFloat).requires_grad_();
  auto noise = torch::zeros({16});
  const std::vector<std::function<Tensor(const Tensor&)>> functions = {
      [](const Tensor& a) { return at::rrelu(at::imag(a.conj()), 0.1, 0.4, true); },
      [](const Tensor& a) { return at::rrelu(at::_neg_view(at::real(a)), 0.1, 0.4, true); },
      [&noise](const Tensor& a) { return at::rrelu_with_noise(at::imag(a.conj()), noise, 0.1, 0.4, true); }};
  for (const auto& fn : functions) {
    torch::manual_seed(3);
    const auto expected = torch::autograd::grad({fn(c).sum()}, {c})[0];
    torch::manual_seed(3);
    auto y = refrain::checkpoint(rerun, fn, c);
    poison_heap();
    noise.data().fill_(-12345);
    expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {c})[0]);
  }
}

// Backward needs nothing after it, and its bytes are not there yet.
TEST_F(Rerun, AFunctionThatFillsWhatWasSavedIsNotStoppedBefore) {
  const auto by_operator = [](const Tensor& a) {
    auto buffer = at::empty({3, 4});
    auto y = a * buffer;
    for (int i = 0; i < 3; ++i) buffer.data()[i].fill_(i + 1);
    return y + buffer;
  };
  const auto by_pointer = [](const Tensor& a) {
    auto buffer = at::empty({3, 4});
    auto* p = buffer.mutable_data_ptr<float>();
    auto y = a * buffer;
    auto z = y.detach() + 1;  // would stop here
    for (int i = 0; i < 12; ++i) p[i] = static_cast<float>(i);
    return y + buffer;
  };
  for (const std::function<Tensor(const Tensor&)>& fn :
       {std::function<Tensor(const Tensor&)>(by_operator), {by_pointer}}) {
    const auto expected = torch::autograd::grad({fn(x).sum()}, {x})[0];
    auto y = refrain::checkpoint(rerun, fn, x);
    poison_heap();
    expect_bit_equal(expected, torch::autograd::grad({y.sum()}, {x})[0]);
  }
}

// A backward inside calls the function again while the first call has not come to the write. What was filled by pointer
// and saved was whole then: an operator that moves its version, as autograd sees, does not fill it.
TEST_F(Rerun, ABackwardInsideReadsWhatTheFunctionOverwritesLater) {
  const std::vector<std::function<void(Tensor&)>> writes = {[](Tensor& t) { t.add_(t, 0.5); },
                                                            [](Tensor& t) { t.zero_(); },
                                                            [](Tensor& t) {
                                                              t.copy_(at::ones({3, 4}));
                                                            },
                                                            [](Tensor& t) { t[1].fill_(3); }};
  const auto filled = [](double value) {
    auto buffer = at::empty({3, 4});
    auto* p = buffer.mutable_data_ptr<float>();
    for (int i = 0; i < 12; ++i) p[i] = static_cast<float>(value * i);
    return buffer;
  };
  for (const auto& write : writes) {
    const auto of_pointer = [&](const Tensor& a) {
      auto buffer = filled(0.1);
      const auto slope = torch::autograd::grad({(a * buffer).sum()}, {a})[0];
      write(buffer);
      return a * slope + buffer;
    };
    const auto beside_pointer = [&](const Tensor& a) {
      auto y = a.exp();
      auto z = (y * filled(0.1)).sum();
      const auto slope = torch::autograd::grad({z}, {a})[0];
      auto data = y.detach();
      write(data);
      return a * slope + data;
    };
    for (const std::function<Tensor(const Tensor&)>& fn :
         {std::function<Tensor(const Tensor&)>(of_pointer), {beside_pointer}}) {
      const auto expected = fn(x).detach();
      const auto gradient = torch::autograd::grad({fn(x).sum()}, {x})[0];
      auto y = refrain::checkpoint(rerun, fn, x);
      poison_heap();
      expect_bit_equal(expected, y.detach());
      expect_bit_equal(gradient, torch::autograd::grad({y.sum()}, {x})[0]);
    }
  }
}

// What a function may capture and find otherwise the second time; sizes of what is saved are the same. @param between  forward and
// backward.
struct Capture {
  const char* name;
  const char* says;
  std::function<Tensor(const Tensor&)> fn;
  std::function<void()> between;
};

TEST_F(Rerun, TheDefaultCheckNoticesCapturesThatChanged) {
  auto weight = torch::randn({4, 4}), other = torch::randn({4, 4}), buffer = torch::randn({4, 4}),
       trained = torch::randn({4, 4});
  trained.requires_grad_();
  int calls = 0;
  double scale = 2;
  bool grad = true;
  std::vector<int64_t> dims{0};
  auto dtype = at::kFloat;
  Tensor state = torch::ones({4, 4});
  Tensors cache{torch::randn({3, 4})};
  const std::vector<Capture> captures = {
      {"a buffer that the function reads and updates",
       "the first call wrote to it",
       [&](const Tensor& a) {
         torch::NoGradGuard no_grad_guard;
         auto s = buffer.norm();
         buffer.mul_(1.5);
         torch::AutoGradMode mode(true);
         return (a * s).sin();
       },
       {}},
      {"a buffer that it updates and reads",
       "at version",
       [&](const Tensor& a) {
         buffer.mul_(1.5);
         return (a.mm(buffer)).sin();
       },
       {}},
      {"a tensor that it replaces",
       "a result of the first call",
       [&](const Tensor& a) {
         state = state.mm(weight).detach();
         return a.mm(state).sin();
       },
       {}},
      {"a cache that it fills",
       "a result of the first call",
       [&](const Tensor& a) {
         cache[0] = (cache[0] + 1).detach();
         return (a * cache[0]).sin();
       },
       {}},
      {"a number", "arguments that are not tensors", [&](const Tensor& a) { return (a * scale).sin(); },
       [&] { scale = 3; }},
      {"a list of numbers", "arguments that are not tensors",
       [&](const Tensor& a) { return a.t().mm(a).softmax(dims[0]).sin(); }, [&] { dims[0] = 1; }},
      {"a dtype", "results of other operators",
       [&](const Tensor& a) { return (a * weight.sum().to(dtype).to(at::kFloat)).sin(); },
       [&] { dtype = at::kBFloat16; }},
      {"another tensor", "with other values", [&](const Tensor& a) { return (a * weight.sum()).sin(); },
       [&] {
         weight = torch::randn({4, 4});
       }},
      {"operands that are swapped",
       "with other values",
       [&](const Tensor& a) { return calls++ % 2 ? a.mm(other.sub(buffer)).sin() : a.mm(buffer.sub(other)).sin(); },
       {}},
      {"results that are swapped",
       "results of other operators",
       [&](const Tensor& a) {
         auto s = a.detach().sin(), c = a.detach().cos();
         return calls++ % 2 ? (a * s.sub(c)).sin() : (a * c.sub(s)).sin();
       },
       {}},
      {"a change in place", "at version", [&](const Tensor& a) { return (a + other.sum()).sin(); },
       [&] { other.add_(1); }},
      {"a change without a version", "without a new version", [&](const Tensor& a) { return (a + other.sum()).sin(); },
       [&] { other.data().add_(1); }},
      {"whether a weight is trained", "tensors that require gradients",
       [&](const Tensor& a) { return a.mm(trained).mm(trained).sin(); }, [&] { trained.requires_grad_(false); }},
      {"the gradient mode", "another gradient mode",
       [&](const Tensor& a) {
         torch::AutoGradMode mode(grad);
         auto y = a.sin();
         torch::AutoGradMode on(true);
         return (y * a).sin();
       },
       [&] { grad = false; }},
  };
  for (const auto& [name, says, fn, between] : captures) {
    calls = 0;
    auto y = refrain::checkpoint(rerun, fn, x);
    if (between) between();
    const auto text = message_of<CheckpointError>([&] { y.sum().backward(); });
    EXPECT_TRUE(text.find("did something else") != std::string::npos || text.find("changed since") != std::string::npos)
        << name << ": " << text;
    EXPECT_NE(text.find(says), std::string::npos) << name << ": " << text;
    flush_engine();
    trained.requires_grad_(true);
  }
}

TEST_F(Rerun, TheDefaultCheckAcceptsWhatIsTheSame) {
  torch::nn::BatchNorm1d norm(4);
  auto weight = torch::randn({4, 4}), scratch = torch::empty({3, 4});
  std::vector<float> numbers{1, 2, 3, 4};
  Tensor kept;
  const std::vector<std::function<Tensor(const Tensor&)>> functions = {
      [&](const Tensor& a) { return norm->forward(a.mm(weight)).sin(); },
      [&](const Tensor& a) { return (a * torch::from_blob(numbers.data(), {4})).sin(); },
      [&](const Tensor& a) {
        return (a * torch::tensor({1.0F, 2.0F, 3.0F, 4.0F})).sin();
      },
      [&](const Tensor& a) {  // overwritten before it is read
        scratch.copy_(a.detach());
        return (a * scratch.sum()).sin();
      },
      [&](const Tensor& a) { return kept = a.sin().exp(); },
      [&, again = x](const Tensor& a) { return (a.sub(again)).sin() * again; },
      [&](const Tensor& a) {
        auto leaf = a.detach().clone().requires_grad_();
        return (a * torch::autograd::grad({leaf.sin().sum()}, {leaf})[0]).exp();
      }};
  for (size_t i = 0; i < functions.size(); ++i) {
    auto y = refrain::checkpoint(rerun, functions[i], x);
    EXPECT_NO_THROW(y.sum().backward()) << "function " << i;
    flush_engine();
  }
  kept = Tensor();
}

TEST_F(Rerun, ASwitchOfLibTorchThatChangedIsAnError) {
  auto y = refrain::checkpoint(
               rerun, [](const Tensor& a) { return a.sin().exp(); }, x)
               .sum();
  at::globalContext().setUserEnabledMkldnn(false);
  const auto text = message_of<CheckpointError>([&] { y.backward({}, true); });
  at::globalContext().setUserEnabledMkldnn(true);
  EXPECT_NE(text.find("`mkldnn` was on in forward and is off now"), std::string::npos) << text;
  flush_engine();
  EXPECT_NO_THROW(y.backward());
}

struct CountedWarnings : c10::WarningHandler {
  void process(const c10::Warning&) override { ++count; }
  int count = 0;
};

TEST_F(Rerun, WarningsAreNotRepeated) {
  CountedWarnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  const c10::WarningUtils::WarnAlways always(true);
  // a result that has to be resized
  const auto fn = [](const Tensor& a) {
    auto y = a.sin();
    auto out = at::ones({2});
    at::cos_out(out, a.detach());
    return (y * out).exp();
  };
  fn(x).sum().backward();
  const int once = std::exchange(warnings.count, 0);
  ASSERT_GT(once, 0);
  for (const auto& options : {CheckpointOptions(), rerun}) {
    refrain::checkpoint(options, fn, x).sum().backward();
    EXPECT_EQ(std::exchange(warnings.count, 0), once);
  }
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
    auto y = refrain::checkpoint(
        rerun, [](const Tensor& a) { return SavesItsResult::apply(a); }, big);
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
  const LibTorchLeaks cycle;
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

// A backward inside the function reads what was saved outside of it, which may have been overwritten before the second call.
TEST_F(Rerun, AnErrorOfTheSecondCallSaysWhereItComesFrom) {
  auto outside = x * 1.5;
  auto saved = outside.abs();  // of `outside` itself
  const auto inner = [&](const Tensor& a) { return a.exp() * torch::autograd::grad({saved.sum()}, {x}, {}, true)[0]; };
  auto y = refrain::checkpoint(rerun, inner, x);
  outside.mul_(2);
  const auto message = message_of<c10::Error>([&] { y.sum().backward(); });
  EXPECT_NE(message.find("modified by an inplace operation"), std::string::npos) << message;
  EXPECT_NE(message.find("which backward reran"), std::string::npos) << message;
  flush_engine();
}

// The function must not be rerun beyond the backward inside it: what it saved before is overwritten there.
TEST_F(Rerun, ABackwardInsideReadsWhatWasFilledInPartsBeforeItIsOverwritten) {
  const auto fn = [](const Tensor& a) {
    auto filled = torch::empty_like(a.detach());
    for (int64_t i = 0; i < a.size(0); ++i) filled.select(0, i).copy_(a.select(0, i) * 0.5);
    const auto slope = torch::autograd::grad({torch::atan2(filled, a.cos()).sum()}, {a})[0];
    filled.select(0, 1).add_(slope.select(0, 1));
    return slope * a.exp();
  };
  const auto expected = fn(x).detach();
  expect_bit_equal(expected, refrain::checkpoint(rerun, fn, x).detach());
}

// ---- Scopes that end in another order ---------------------------------------------------------------------------------------

using refrain::detail::RegionScope;

TEST_F(Rerun, RegionsThatCloseInAnyOrderLeaveNoneOpen) {
  const auto expected = torch::autograd::grad({(x.sin().exp() * x.cos()).sum()}, {x})[0];
  for (const bool outer_first : {true, false}) {
    const CheckpointOptions options;
    auto outer = std::make_unique<RegionScope>(options);
    auto a = x.sin();
    auto inner = std::make_unique<RegionScope>(options);
    a = a.exp();
    (outer_first ? outer : inner).reset();
    EXPECT_TRUE(refrain::is_checkpointing());
    auto b = x.cos();
    outer.reset();
    inner.reset();
    EXPECT_FALSE(refrain::is_checkpointing());
    const auto recorded = refrain::tape_stats().recorded_ops;
    auto loss = (a * b).sum();
    EXPECT_EQ(refrain::tape_stats().recorded_ops, recorded) << "a closed region records";
    poison_heap();
    expect_bit_equal(expected, torch::autograd::grad({loss}, {x})[0]);
  }
}

// What the outer one keeps by its policy is kept for the inner one, which goes on.
TEST_F(Rerun, ARegionThatClosesFirstWaitsForThoseInside) {
  const auto a = torch::rand({3, 4});
  const auto replayed = [&](bool outer_first) {
    const auto before = refrain::tape_stats().replayed_ops;
    const CheckpointOptions keeps = CheckpointOptions().policy(refrain::save_ops({"aten::exp"})), options;
    auto outer = std::make_unique<RegionScope>(keeps);
    auto kept = a.exp();
    auto made = kept.sin();
    kept.reset();
    auto inner = std::make_unique<RegionScope>(options);
    if (outer_first) outer.reset();
    const auto loss = (x * made).sum();
    made.reset();
    inner.reset();
    outer.reset();
    expect_bit_equal(a.exp().sin(), torch::autograd::grad({loss}, {x})[0]);
    return refrain::tape_stats().replayed_ops - before;
  };
  EXPECT_EQ(replayed(false), 1) << "the sine alone";
  EXPECT_EQ(replayed(true), 1);
}

TEST_F(Rerun, GuardsThatEndInAnyOrderLeaveNothingBehind) {
  auto first = std::make_unique<refrain::NoCheckpointGuard>(), second = std::make_unique<refrain::NoCheckpointGuard>();
  first.reset();
  second.reset();
  int calls = 0;
  const auto fn = [&](const Tensor& a) {
    auto y = a.sin().exp();
    auto z = y + 1;
    ++calls;
    return z;
  };
  const auto calls_of = [&] {
    calls = 0;
    refrain::checkpoint(rerun, fn, x).sum().backward();
    return calls;
  };
  EXPECT_EQ(calls_of(), 1) << "called again, and stopped early";
  auto off = std::make_unique<refrain::EarlyStopGuard>(false), on = std::make_unique<refrain::EarlyStopGuard>(true);
  off.reset();
  EXPECT_EQ(calls_of(), 1);
  on.reset();
  EXPECT_EQ(calls_of(), 1);
}

// ---- Null --------------------------------------------------------------------------------------------------------------------

TEST_F(Rerun, NullModulesAreRefused) {
  torch::nn::Linear empty = nullptr;
  const std::shared_ptr<torch::nn::LinearImpl> null;
  torch::nn::LinearImpl* const pointer = nullptr;
  Tensor (*const function)(const Tensor&) = nullptr;
  const std::function<Tensor(const Tensor&)> no_function;
  const auto refused = [](const auto& call) {
    EXPECT_NE(message_of<InvalidArgument>(call).find("null"), std::string::npos);
  };
  for (const auto& options : {CheckpointOptions(), rerun}) {
    refused([&] { refrain::checkpoint(options, empty, x); });
    refused([&] { refrain::checkpoint(options, null, x); });
    refused([&] { refrain::checkpoint(options, pointer, x); });
    refused([&] { refrain::checkpoint(options, function, x); });
    refused([&] { refrain::checkpoint(options, no_function, x); });
    refused([&] { refrain::checkpoint(options, &torch::nn::LinearImpl::forward, null, x); });
    refused([&] { refrain::checkpoint(options, &torch::nn::LinearImpl::forward, pointer, x); });
    refused([&] { refrain::checkpoint_sequential(torch::nn::Sequential(nullptr), 1, x, options); });
    refused([&] { refrain::checkpoint_sequential(std::vector<torch::nn::Linear>{nullptr}, 1, x, options); });
    refused([&] { (void)refrain::verify_checkpoint(options, empty, x); });
  }
  refused([&] {
    refrain::nn::Checkpoint<torch::nn::Linear> wrapped(nullptr);
    wrapped(x);
  });
  refused([&] { refrain::apply_checkpointing(empty, refrain::is_module<torch::nn::Linear>()); });
  refused([&] { refrain::call(empty, x); });
  EXPECT_FALSE(refrain::is_checkpointing());
}

}  // namespace
}  // namespace refrain_test
