#include <thread>

#include "evict/step_history.h"
#include "memory/testing.h"
#include "tests/budget/cap_support.h"

/// What an eviction could get wrong, one case each.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::MemoryCap;
using refrain::MemoryCapOptions;
using refrain::PinScope;

class CapTest : public TapeTest {
 protected:
  void SetUp() override {
    refrain::install_memory_tracking();
    TapeTest::SetUp();
  }
};

Tensor numbers(int64_t n = 2048) { return torch::arange(n, torch::kFloat) / 100; }

TEST_F(CapTest, ReadsOfTheUserBringBytesBack) {
  MemoryCap cap(kNoLimit);
  const auto x = numbers();
  const auto y = x.exp(), view = y.view({2, -1});
  const auto want = bits_of(y);
  evict_all();
  EXPECT_GT(cap.stats().evictions, 0);
  EXPECT_TRUE(want == bits_of(y));
  evict_all();
  EXPECT_EQ(view.sum().item<float>(), y.sum().item<float>());
  EXPECT_EQ(y.nbytes(), 2048 * 4);
}

TEST_F(CapTest, RawPointersToWhatHasLeftAreAnError) {
  MemoryCap cap(kNoLimit);
  const auto y = numbers().exp();
  evict_all();
  for (const auto& access :
       std::vector<std::function<void()>>{[&] { y.const_data_ptr(); }, [&] { y.data_ptr(); },
                                          [&] { (void)y.storage().data_ptr(); }, [&] { y.data_ptr<float>(); }}) {
    const auto message = message_of<c10::Error>(access);
    EXPECT_NE(message.find("[refrain::MemoryCap]"), std::string::npos) << message;
    EXPECT_NE(message.find("PinScope"), std::string::npos) << message;
  }
}

TEST_F(CapTest, PinnedBytesStay) {
  MemoryCap cap(kNoLimit);
  const auto y = numbers().exp();
  evict_all();
  {
    const PinScope pin(y);
    const auto* data = y.const_data_ptr<float>();
    const float first = data[5];
    evict_all();
    EXPECT_EQ(y.const_data_ptr<float>(), data);
    EXPECT_EQ(first, y[5].item<float>());
  }
  evict_all();
  EXPECT_THROW(y.const_data_ptr(), c10::Error);
  cap.pin(y);
  evict_all();
  EXPECT_NO_THROW(y.const_data_ptr());
}

TEST_F(CapTest, RawWritesIntoAnOutputAreSeen) {
  MemoryCap cap(kNoLimit);
  const auto e = torch::zeros({2048});
  std::fill_n(e.data_ptr<float>(), 2048, 3.0F);
  const auto y = e * 2;
  evict_all();
  EXPECT_EQ(e.sum().item<float>(), 3 * 2048);
  EXPECT_EQ(y.sum().item<float>(), 6 * 2048);
}

TEST_F(CapTest, RawFillsOfEmptyTensorsAreSeen) {
  MemoryCap cap(kNoLimit);
  const auto e = torch::empty({2048});
  std::fill_n(e.data_ptr<float>(), 2048, 3.0F);
  const auto y = e * 2;
  evict_all();
  EXPECT_EQ(e.sum().item<float>(), 3 * 2048);
  EXPECT_EQ(y.sum().item<float>(), 6 * 2048);
}

// Found by random programs. What cannot be evicted, as what it was computed from is gone, is read by what is recomputed.
TEST_F(CapTest, RawWritesIntoWhatCannotBeEvictedAreSeen) {
  const auto policy = refrain::set_leaf_write_policy(refrain::LeafWritePolicy::kError);
  auto x = numbers();
  const auto want = (x * 2).sin();
  {
    MemoryCap cap(kNoLimit);
    auto y = x * 2;
    const auto z = y.sin();
    x.zero_();
    evict_all();
    EXPECT_NO_THROW(y.const_data_ptr()) << "stays: `x` is overwritten";
    EXPECT_THROW(z.const_data_ptr(), c10::Error) << "is evicted";
    std::fill_n(y.data_ptr<float>(), 2048, 3.0F);
    EXPECT_TRUE(z.equal(want));
    EXPECT_EQ(y.sum().item<float>(), 3 * 2048);
  }
  refrain::set_leaf_write_policy(policy);
}

TEST_F(CapTest, AnOperatorThatTheTapeDoesNotSeeMustAskForAPointer) {
  const auto x = numbers();
  const auto want = x * 2;
  MemoryCap cap(kNoLimit);
  const auto y = x * 2;
  evict_all();
  {
    c10::impl::ExcludeDispatchKeyGuard unseen(c10::DispatchKey::Fake);
    x.add_(1);
  }
  EXPECT_TRUE(y.equal(want));
}

TEST_F(CapTest, ALeafChangedUnseenIsAnErrorAndNotAWrongNumber) {
  const auto x = numbers();
  auto* const bytes = x.data_ptr<float>();  // from before the cap looked at it
  Tensor y;
  MemoryCap cap(kNoLimit);
  y = x * 2;
  evict_all();
  bytes[0] += 1;
  x.unsafeGetTensorImpl()->bump_version();
  const auto message = message_of<refrain::CheckpointError>([&] { y.sum(); });
  EXPECT_NE(message.find("version"), std::string::npos) << message;
  EXPECT_EQ(message.find("[refrain::MemoryCap]"), 0U) << message;
  EXPECT_EQ(message.find("region"), std::string::npos) << message;
  EXPECT_THROW(y.const_data_ptr(), c10::Error);
}

// Written through a pointer of before the cap: only the version tells, and what cannot be recomputed stays.
TEST_F(CapTest, WhatReadALeafThatHasChangedSinceStays) {
  auto leaf = torch::ones({64, 64});
  auto* const pointer = leaf.mutable_data_ptr<float>();
  const MemoryCap cap(kNoLimit, every_byte());
  const auto read = leaf.mul(2);
  pointer[7] = 5;
  leaf.unsafeGetTensorImpl()->bump_version();
  const auto later = leaf.mul(2);
  evict_all();
  EXPECT_EQ(bits_of(read), bits_of(torch::full({64, 64}, 2.0F)));
  EXPECT_EQ(later[0][7].item<float>(), 10.0F);
}

// Who writes first gets other memory, and whoever is left the old one, with the header in front of it.
TEST_F(CapTest, CopyOnWriteCopiesLeaveNothing) {
  const auto before = live();
  for (int what = 0; what < 6; ++what) {
    for (const bool evicts : {false, true}) {
      {
        MemoryCap cap(kNoLimit, every_byte());
        const auto x = torch::randn({16, 16}).requires_grad_(), w = torch::randn({16, 16}).requires_grad_();
        auto h = x.mm(w).sin();
        if (evicts) evict_all();
        const auto lazy = [&](const Tensor& of) { return at::_lazy_clone(of); };
        if (what < 4) {
          const auto copy = lazy(what == 1 ? h.detach() : h);
          h.mul_(2);
          if (what == 2) {
            const auto z = copy.tanh();
            copy.zero_();
            (z.sum() + h.sum()).backward();
          } else {
            (what == 3 ? copy.tanh().sum() + h.sum() : h.cos().add(copy).sum()).backward();
          }
        } else {
          const torch::NoGradGuard no_grad;
          auto copy = lazy(h);
          (what == 4 ? h : copy).mul_(3);
          if (evicts) evict_all();
          EXPECT_EQ(copy.numel(), 256);
        }
      }
      EXPECT_EQ(live(), before) << "case " << what << (evicts ? ", evicted" : "");
    }
  }
}

TEST_F(CapTest, ALeafIsOverwrittenAfterWhatNeedsItCameBack) {
  const auto x = numbers();
  const auto want = bits_of((x * 2).sin());
  MemoryCap cap(kNoLimit);
  const auto y = (x * 2).sin();
  evict_all();
  x.add_(1);
  EXPECT_TRUE(want == bits_of(y));
  evict_all();
  EXPECT_TRUE(want == bits_of(y));
}

TEST_F(CapTest, ALeafOverwrittenInPart) {
  const auto x = numbers();
  const auto want = bits_of((x * 2).sin());
  MemoryCap cap(kNoLimit);
  const auto y = (x * 2).sin();
  evict_all();
  x.narrow(0, 3, 5).zero_();
  EXPECT_TRUE(want == bits_of(y));
}

TEST_F(CapTest, NothingIsLostWhenAResidentValueDies) {
  auto x = numbers();
  const auto want = bits_of((x * 2).sin());
  MemoryCap cap(kNoLimit);
  auto h = x * 2;
  const auto y = h.sin();
  {
    const PinScope stays(h);
    evict_all();
  }
  x.add_(1);
  h.reset();
  EXPECT_TRUE(want == bits_of(y));
}

TEST_F(CapTest, SourcesLiveWhileSomethingEvictedNeedsThem) {
  auto x = numbers();
  const auto want = bits_of((x * 2).sin());
  MemoryCap cap(kNoLimit);
  auto h = x * 2;
  const auto y = h.sin();
  evict_all();
  x.reset();
  h.reset();
  EXPECT_TRUE(want == bits_of(y));
}

TEST_F(CapTest, InPlaceVersions) {
  const auto x = numbers();
  const auto program = [&] {
    auto a = x.exp();
    const auto s = a.sin();
    a.mul_(2);
    const auto t = a.cos();
    a.narrow(0, 7, 100).add_(1);
    a.mul_(a);
    return torch::stack({a, s, t});
  };
  const auto want = bits_of(program());
  MemoryCap cap(kNoLimit, every_byte());
  const Torture torture;
  EXPECT_TRUE(want == bits_of(program()));
}

TEST_F(CapTest, RandomNumbersAreDrawnOnce) {
  const auto program = [&] {
    torch::manual_seed(3);
    const auto a = torch::rand({2048});
    const auto b = torch::dropout(a, 0.5, true);
    const auto c = torch::randn({2048});
    return torch::stack({a, b, c, torch::rand({2048})});
  };
  const auto want = bits_of(program());
  MemoryCap cap(kNoLimit);
  const Torture torture;
  EXPECT_TRUE(want == bits_of(program()));
}

TEST_F(CapTest, PackedSequencesKeepTheirLengths) {
  torch::manual_seed(1);
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(8, 16));
  const auto x = torch::randn({12, 3, 8});
  const auto program = [&] {
    lstm->zero_grad();
    const auto lengths = torch::tensor({12, 7, 2}, torch::kLong) * 1;
    const auto packed = torch::nn::utils::rnn::pack_padded_sequence(x, lengths);
    const auto [out, state] = lstm->forward_with_packed_input(packed);
    std::get<0>(torch::nn::utils::rnn::pad_packed_sequence(out)).sum().backward();
    std::string all;
    for (const auto& p : lstm->parameters()) all += bits_of(p.grad());
    return all;
  };
  const auto want = program();
  MemoryCap cap(kNoLimit, every_byte());
  const Torture torture;
  EXPECT_TRUE(want == program());
}

TEST_F(CapTest, RetainedGraphsAndDoubleBackward) {
  const auto program = [&] {
    auto w = numbers().detach().requires_grad_();
    const auto y = (w.sin() * w).exp().mul(0.001);
    const auto g = torch::autograd::grad({y.sum()}, {w}, {}, true, true)[0];
    y.sum().backward({}, true);
    y.sum().backward({}, true);
    g.sum().backward();
    return bits_of(w.grad()) + bits_of(g);
  };
  const auto want = program();
  MemoryCap cap(kNoLimit, every_byte());
  const Torture torture;
  EXPECT_TRUE(want == program());
}

TEST_F(CapTest, CheckpointRegionsInside) {
  const auto program = [&] {
    auto w = numbers().detach().requires_grad_();
    const auto outside = w.sin();
    const auto y = refrain::checkpoint([&] { return (outside.exp() * w).cos(); });
    const auto z = refrain::checkpoint([&] { return refrain::checkpoint([&] { return (y * y).sin(); }) * outside; });
    (z * y).sum().backward();
    return bits_of(w.grad()) + bits_of(z);
  };
  const auto want = program();
  MemoryCap cap(kNoLimit, every_byte());
  const Torture torture;
  EXPECT_TRUE(want == program());
}

struct Doubled : torch::autograd::Function<Doubled> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x) {
    context->save_for_backward({x});
    return x * x;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto x = context->get_saved_variables()[0];
    return {gradients[0] * 2 * x};
  }
};

TEST_F(CapTest, CustomBackwardReadsRefilledBytes) {
  const auto program = [&] {
    auto w = numbers().detach().requires_grad_();
    Doubled::apply(w.sin()).sum().backward();
    return bits_of(w.grad());
  };
  const auto want = program();
  MemoryCap cap(kNoLimit, every_byte());
  const Torture torture;
  EXPECT_TRUE(want == program());
}

TEST_F(CapTest, NothingLeavesForGoodAtTheEnd) {
  Tensor y;
  std::string want;
  {
    MemoryCap outer(kNoLimit);
    y = numbers().exp();
    want = bits_of(y);
    {
      MemoryCap inner(kNoLimit);
      evict_all();
    }
    EXPECT_THROW(y.const_data_ptr(), c10::Error);
  }
  EXPECT_NO_THROW(y.const_data_ptr());
  EXPECT_TRUE(want == bits_of(y));
}

TEST_F(CapTest, TheTapeDoesNotGrow) {
  torch::manual_seed(1);
  torch::nn::Sequential model(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 8));
  torch::optim::Adam adam(model->parameters());
  torch::optim::SGD sgd(model->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
  const auto x = torch::randn({16, 32});
  auto average = torch::zeros({8});
  MemoryCap cap(kNoLimit, every_byte());
  std::vector<int64_t> ops;
  for (int step = 0; step < 40; ++step) {
    if (step % 10 == 0) {
      adam.zero_grad();
    }
    const auto y = model->forward(x);
    y.pow(2).sum().backward();
    average.mul_(0.9).add_(y.detach().mean(0));
    adam.step();
    sgd.step();
    evict_all();
    y.sum().item<float>();
    torch::ones({1}, torch::requires_grad()).sum().backward();
    ops.push_back(live().ops);
  }
  EXPECT_LE(ops.back(), ops[5] + 70) << testing::PrintToString(ops);
  EXPECT_EQ(ops[38], ops[28]);
}

TEST_F(CapTest, OutOfMemorySaysWhatIsMissingAndLeavesTheStateIntact) {
  torch::manual_seed(1);
  torch::nn::Linear layer(64, 64);
  const auto step = [&](int64_t rows) {
    layer->zero_grad();
    layer->forward(torch::ones({rows, 64})).sin().exp().sum().backward();
    return bits_of(layer->weight.grad());
  };
  const auto want = step(64);
  const Bytes now = refrain::memory_stats().current;
  MemoryCap cap(now + 300000);
  try {
    step(4096);
    ADD_FAILURE() << "expected OutOfMemory";
  } catch (const refrain::OutOfMemory& error) {
    EXPECT_GT(error.missing(), 0);
    EXPECT_EQ(error.min_limit() - error.limit(), error.missing());
    EXPECT_NE(std::string(error.msg()).find("aten::"), std::string::npos) << error.msg();
  }
  EXPECT_TRUE(want == step(64));
}

TEST_F(CapTest, TimeCanBeBounded) {
  const auto program = [] {
    auto w = torch::ones({64, 64}).requires_grad_();
    auto h = w;
    for (int i = 0; i < 30; ++i) h = (h.matmul(w) * 0.01).sin();
    h.sum().backward();
  };
  const Bytes limit = refrain::memory_stats().current + 400000;
  {
    MemoryCap cap(limit);
    program();
    EXPECT_GT(cap.stats().recomputes, 0);
  }
  MemoryCap cap(limit, MemoryCapOptions().max_overhead(1e-6));
  try {
    program();
    ADD_FAILURE() << "expected OutOfMemory";
  } catch (const refrain::OutOfMemory& error) {
    EXPECT_NE(std::string(error.msg()).find("max_overhead"), std::string::npos) << error.msg();
    EXPECT_GT(error.min_limit(), limit);
  }
  EXPECT_THROW(MemoryCap(limit, MemoryCapOptions().max_overhead(0)), refrain::InvalidArgument);
  EXPECT_THROW(MemoryCap(-1), refrain::InvalidArgument);
}

TEST_F(CapTest, AnyAllocationMayFailAndTheNextStepIsRight) {
  torch::manual_seed(1);
  torch::nn::Linear layer(64, 64);
  const auto x = torch::randn({64, 64});
  const auto step = [&] {
    layer->zero_grad();
    torch::manual_seed(2);
    auto h = x;
    for (int i = 0; i < 6; ++i) h = torch::dropout(layer->forward(h).sin_(), 0.1, true).exp();
    h.sum().backward();
    return bits_of(layer->weight.grad());
  };
  const auto want = step();
  layer->zero_grad();
  MemoryCap cap(refrain::memory_stats().current + 230000);
  EXPECT_TRUE(want == step());
  EXPECT_GT(cap.stats().recomputes, 0);
  int failures = 0;
  for (int64_t n = 1;; ++n) {
    refrain::memory_testing::fail_nth_allocation(n);
    bool failed = false;
    try {
      step();
    } catch (const c10::OutOfMemoryError&) {
      failed = true;
    }
    const bool fired = refrain::memory_testing::failure_fired();
    refrain::memory_testing::fail_nth_allocation(0);
    ASSERT_EQ(failed, fired);
    if (!fired) break;
    ++failures;
    ASSERT_TRUE(want == step()) << "after allocation " << n << " failed";
  }
  EXPECT_GT(failures, 50);
}

TEST_F(CapTest, LimitsMayChangeDuringTraining) {
  torch::manual_seed(1);
  torch::nn::Linear layer(64, 64);
  const auto x = torch::randn({64, 64});
  const auto step = [&] {
    layer->zero_grad();
    auto h = x;
    for (int i = 0; i < 8; ++i) h = layer->forward(h).sin().exp();
    h.sum().backward();
    return bits_of(layer->weight.grad());
  };
  const auto want = step();
  layer->zero_grad();
  const Bytes level = refrain::memory_stats().current;
  MemoryCap outer(level + 600000);
  for (int i = 0; i < 30; ++i) {
    MemoryCap inner(level + 150000 + 13000 * ((i * 7) % 30));
    ASSERT_TRUE(want == step()) << i;
  }
}

TEST_F(CapTest, ExceptionsLeaveNoLocks) {
  MemoryCap cap(kNoLimit);
  const auto y = numbers().exp();
  EXPECT_THROW(y.view({-1}).matmul(torch::ones({3, 3})), c10::Error);
  evict_all();
  EXPECT_THROW(y.const_data_ptr(), c10::Error);
}

TEST_F(CapTest, LongChainsComeBackAndAreTakenApart) {
  MemoryCap cap(kNoLimit, every_byte());
  auto x = torch::ones({4});
  for (int i = 0; i < 100000; ++i) x = x * 1.0001;
  const auto want = bits_of(x);
  evict_all();
  EXPECT_TRUE(want == bits_of(x));
  EXPECT_GT(cap.stats().recomputes, 90000);
}

// Where no backward ends the step, what is known of it must not grow for ever.

TEST_F(CapTest, OperatorsWithoutBackwardAreForgottenInTime) {
  torch::NoGradGuard no_grad;
  MemoryCap cap(kNoLimit);
  const auto now = [] {
    refrain::tape::TapeLock lock;
    return refrain::tape::now(lock);
  };
  const auto x = torch::ones({4});
  const auto first = now().step;
  for (uint64_t i = 0; i <= refrain::tape::StepHistory::kMostOperators; ++i) x.neg();
  EXPECT_EQ(now().step, first + 1);
  EXPECT_LT(now().position, refrain::tape::StepHistory::kMostOperators);
}

TEST_F(CapTest, PassesWithoutBackwardAreMergedInTime) {
  constexpr int64_t kMost = 1 << 16;
  const auto x = torch::ones({4});
  MemoryCap cap(kNoLimit, every_byte());
  const auto y = x.exp();
  for (int64_t i = 0; i < kMost + 1000; ++i) {
    evict_all();
    y.neg();
  }
  EXPECT_EQ(cap.stats().recomputes, kMost + 1000);
  refrain::tape::TapeLock lock;
  const auto passes = refrain::tape::step_passes(lock);
  EXPECT_LT(static_cast<int64_t>(passes.size()), kMost);
  EXPECT_GT(static_cast<int64_t>(passes.size()), kMost / 2);
  int64_t spent = 0;
  for (const auto& pass : passes) spent += pass.ns;
  EXPECT_EQ(spent, refrain::tape::step_times(lock).again_ns);
}

TEST_F(CapTest, ValidationWithoutGradients) {
  const auto x = numbers();
  const auto program = [&] {
    torch::NoGradGuard no_grad;
    const auto h = x.sin();
    return bits_of((h.exp() * h).cumsum(0));
  };
  const auto want = program();
  MemoryCap cap(kNoLimit, every_byte());
  const Torture torture;
  EXPECT_TRUE(want == program());
  c10::InferenceMode inference;
  EXPECT_TRUE(want == program());
}

TEST_F(CapTest, TwoThreads) {
  const auto program = [](int seed) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    auto w = torch::randn({64, 64}, generator).requires_grad_();
    auto h = w;
    for (int i = 0; i < 20; ++i) h = (h.matmul(w) * 0.1).sin();
    h.sum().backward();
    return bits_of(w.grad());
  };
  const std::vector<std::string> want{program(1), program(2)};
  const Bytes limit = refrain::memory_stats().current + 500000;
  std::vector<std::string> got(2);
  const auto live_before = live();
  {
    MemoryCap cap(limit);
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i)
      threads.emplace_back([&, i] {
        MemoryCap own(limit);
        got[i] = program(i + 1);
      });
    for (auto& thread : threads) thread.join();
    EXPECT_GT(cap.stats().evictions, 0);
  }
  EXPECT_TRUE(want == got);
  EXPECT_EQ(live(), live_before);
}

// `at::max_pool1d` without gradients is one function that reads pointers, with no operator of the dispatcher below it.
TEST_F(CapTest, CompositeFunctionsThatReadPointers) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const auto expected = torch::max_pool1d(torch::randn({4, 8, 64}) * 2, 2);
  torch::manual_seed(0);
  const MemoryCap cap(kNoLimit, every_byte());
  const auto x = torch::randn({4, 8, 64}) * 2;
  evict_all();
  ASSERT_GT(evicted_bytes(), 0);
  const auto y = torch::max_pool1d(x, 2);
  expect_bit_equal(expected, y);
}

TEST_F(CapTest, AnotherThreadReadsAndWritesInACapThreadScope) {
  const MemoryCap cap(kNoLimit, every_byte());
  const auto w = torch::arange(0, 64).to(torch::kFloat);
  auto h = w.mul(2);
  evict_all();
  std::string refused;
  double sum = 0;
  std::thread([&] {
    try {
      (void)h.sum();
    } catch (const c10::Error& error) {
      refused = error.what_without_backtrace();
    }
    const refrain::CapThreadScope scope;
    sum = h.sum().item<double>();
    h[0] = torch::full({}, 5.0F);
  }).join();
  EXPECT_NE(refused.find("CapThreadScope"), std::string::npos) << refused;
  EXPECT_EQ(sum, 63.0 * 64);
  evict_all();
  EXPECT_EQ(h.sum().item<double>(), 63.0 * 64 + 5);
  bool included = true;
  std::thread([&] {
    { const refrain::CapThreadScope scope; }
    included = c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Fake);
  }).join();
  EXPECT_FALSE(included);
}

TEST_F(CapTest, WhatIsPinnedCanBeSaved) {
  const MemoryCap cap(kNoLimit, every_byte());
  torch::nn::Sequential net(torch::nn::Linear(16, 16), torch::nn::BatchNorm1d(16));
  const auto h = net->forward(torch::randn({8, 16}));
  evict_all();
  const auto save = [&] {
    std::ostringstream out, other;
    torch::save(net, out);
    torch::save(h, other);
    return out.str();
  };
  try {
    (void)save();
    FAIL() << "nothing was evicted";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("PinScope"), std::string::npos);
  }
  auto all = net->parameters();
  for (const auto& buffer : net->buffers()) all.push_back(buffer);
  all.push_back(h);
  all.emplace_back();  // undefined
  std::string saved;
  {
    const refrain::PinScope pin(all);
    evict_all();
    saved = save();
  }
  torch::nn::Sequential back(torch::nn::Linear(16, 16), torch::nn::BatchNorm1d(16));
  std::istringstream in(saved);
  torch::load(back, in);
  for (size_t i = 0; i < net->parameters().size(); ++i)
    EXPECT_EQ(bits_of(net->parameters()[i]), bits_of(back->parameters()[i]));
}

}  // namespace
}  // namespace refrain_test
