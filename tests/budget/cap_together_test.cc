#include <ATen/CPUGeneratorImpl.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "memory/testing.h"
#include "refrain/activation_checkpointing.h"
#include "refrain/amp.h"
#include "refrain/offload.h"
#include "refrain/selective.h"
#include "tests/budget/cap_support.h"

/// A cap together with what else a training does.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::MemoryCap;
using refrain::MemoryCapOptions;
using refrain::PinScope;

class CapTogether : public TapeTest {
 protected:
  void SetUp() override {
    refrain::install_memory_tracking();
    TapeTest::SetUp();
  }
};

Tensor numbers(int64_t n = 2048) { return torch::arange(n, torch::kFloat) / 100; }

using Bits = std::function<std::string()>;

/// The same under torture, whatever the size, and under every limit from `program`'s own peak to the first refusal.
void expect_same_bits(const Bits& program) {
  flush_engine();
  const auto want = program();
  flush_engine();
  const Bytes level = refrain::memory_stats().current;
  refrain::reset_peak_memory();
  EXPECT_TRUE(want == program()) << "the program is not the same each time";
  flush_engine();
  const Bytes peak = refrain::memory_stats().peak - level;
  for (const Bytes least : {Bytes{4096}, Bytes{1}}) {
    MemoryCap cap(kNoLimit, MemoryCapOptions().min_bytes(least));
    const Torture torture;
    EXPECT_TRUE(want == program()) << "min_bytes " << least;
    EXPECT_GT(cap.stats().recomputes, 0);
  }
  int kept = 0;
  for (int percent = 150; percent > 0; percent -= 10, ++kept) {
    const Bytes limit = level + peak * percent / 100;
    refrain::reset_peak_memory();
    try {
      MemoryCap cap(limit, every_byte());
      EXPECT_TRUE(want == program()) << percent << " %";
    } catch (const refrain::OutOfMemory&) {
      break;
    }
    EXPECT_LE(refrain::memory_stats().peak, limit);
  }
  EXPECT_GT(kept, 2);
  flush_engine();
  EXPECT_TRUE(want == program()) << "after a refusal";
}

// --- what a step does -------------------------------------------------------------------------------------------------

TEST_F(CapTogether, Autocast) {
  torch::manual_seed(1);
  torch::nn::Sequential net(torch::nn::Linear(64, 128), torch::nn::GELU(), torch::nn::Linear(128, 64));
  const auto x = torch::randn({64, 64});
  for (const bool cache : {true, false}) {
    expect_same_bits([&] {
      net->zero_grad();
      Tensor loss;
      {
        const refrain::AutocastScope autocast(at::kCPU, at::kBFloat16, cache);
        loss = net->forward(net->forward(x)).to(torch::kFloat).pow(2).mean();
      }
      loss.backward();
      std::string all = bits_of(loss);
      for (const auto& p : net->parameters()) all += bits_of(p.grad());
      return all;
    });
  }
}

TEST_F(CapTogether, ControlFlowAndSizesThatChange) {
  torch::manual_seed(1);
  torch::nn::Linear layer(32, 32);
  expect_same_bits([&] {
    std::string all;
    for (const int64_t rows : {16, 3, 40, 1}) {
      layer->zero_grad();
      auto h = torch::ones({rows, 32});
      int rounds = 0;
      while (h.abs().mean().item<float>() > 0.01F && rounds < 12) {
        h = layer->forward(h).tanh() * 0.7;
        if (++rounds % 3 == 0) h = h.narrow(1, 0, 16).repeat({1, 2});
      }
      h.sum().backward();
      all += bits_of(layer->weight.grad()) + std::to_string(rounds);
    }
    return all;
  });
}

TEST_F(CapTogether, ValidationBetweenSteps) {
  torch::manual_seed(1);
  const auto x = torch::randn({64, 32});
  expect_same_bits([&] {
    torch::manual_seed(2);
    torch::nn::Sequential net(torch::nn::Linear(32, 64), torch::nn::BatchNorm1d(64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 8));
    torch::optim::Adam adam(net->parameters());
    std::string all;
    for (int i = 0; i < 4; ++i) {
      adam.zero_grad();
      net->forward(x).pow(2).mean().backward();
      adam.step();
      net->eval();
      if (i % 2 == 0) {
        torch::NoGradGuard no_grad;
        all += bits_of(net->forward(x).softmax(1));
      } else {
        c10::InferenceMode inference;
        all += bits_of(net->forward(x).softmax(1));
      }
      net->train();
    }
    for (const auto& p : net->parameters()) all += bits_of(p);
    for (const auto& b : net->buffers()) all += bits_of(b);
    return all;
  });
}

TEST_F(CapTogether, WholeOverwritesOfWhatHasLeft) {
  const auto x = numbers();
  const std::vector<std::function<void(Tensor&)>> overwrites{[&](Tensor& t) { t.copy_(x); },
                                                             [](Tensor& t) { t.zero_(); },
                                                             [](Tensor& t) { t.fill_(3); },
                                                             [](Tensor& t) { t.normal_(); },
                                                             [](Tensor& t) { t.bernoulli_(0.3); },
                                                             [&](Tensor& t) { at::mul_out(t, x, x); },
                                                             [](Tensor& t) { t.set_data(torch::ones({2048}).exp()); },
                                                             [](Tensor& t) { t.resize_({1024}).fill_(2); },
                                                             [](Tensor& t) {
                                                               t.view({2, -1})[0].zero_();
                                                             }};
  for (size_t i = 0; i < overwrites.size(); ++i) {
    for (const bool dependents : {false, true}) {
      const auto program = [&](bool leaves) {
        torch::manual_seed(3);
        auto y = x.exp();
        const auto before = dependents ? y.sin() : x;
        if (leaves) evict_all();
        overwrites[i](y);
        if (leaves) evict_all();
        const auto after = y * 2;
        if (leaves) evict_all();
        return bits_of(y) + bits_of(before) + bits_of(after) + bits_of(y.cos());
      };
      const auto want = program(false);
      MemoryCap cap(kNoLimit);
      EXPECT_TRUE(want == program(true)) << "overwrite " << i << ", dependents " << dependents;
    }
  }
}

TEST_F(CapTogether, PinsHoldWhatTheTapeHasNotSeen) {
  const auto before = torch::empty({2048});
  MemoryCap cap(kNoLimit);
  auto fresh = torch::empty({2048});
  Tensor elsewhere;
  std::thread([&] { elsewhere = torch::ones({2048}).exp(); }).join();
  for (auto tensor : {before, fresh, elsewhere}) {
    cap.pin(tensor);
    const void* data = tensor.const_data_ptr();
    tensor.copy_(numbers().exp());
    tensor.mul_(2);
    evict_all();
    EXPECT_EQ(tensor.const_data_ptr(), data);
    at::sin_out(tensor, numbers());
    evict_all();
    EXPECT_EQ(tensor.const_data_ptr(), data);
    EXPECT_TRUE(bytes_of(tensor) == bytes_of(numbers().sin()));
  }
}

TEST_F(CapTogether, PinScopesNest) {
  MemoryCap cap(kNoLimit);
  const auto y = numbers().exp();
  {
    const PinScope outer(y);
    { const PinScope inner(y); }
    evict_all();
    EXPECT_NO_THROW(y.const_data_ptr());
  }
  evict_all();
  EXPECT_THROW(y.const_data_ptr(), c10::Error);
}

TEST_F(CapTogether, PinnedForGoodStaysPinnedAfterAScope) {
  MemoryCap cap(kNoLimit);
  const auto y = numbers().exp();
  cap.pin(y);
  { const PinScope scope(y); }
  evict_all();
  EXPECT_NO_THROW(y.const_data_ptr());
}

// --- regions ----------------------------------------------------------------------------------------------------------

std::string blocks(const refrain::CheckpointOptions& options) {
  torch::manual_seed(4);
  auto w = (torch::randn({64, 64}) / 8).requires_grad_();
  auto h = torch::randn({64, 64});
  const auto older = h.matmul(w).exp();
  for (int i = 0; i < 4; ++i) {
    h = h.matmul(w);
    h = refrain::checkpoint(
        options,
        [&](const Tensor& x, const Tensor& y) { return torch::gelu(torch::dropout(x.matmul(w), 0.2, true) * y).sin(); },
        h, older);
  }
  h.sum().backward();
  return bits_of(w.grad());
}

TEST_F(CapTogether, RegionsOfEverySort) {
  using refrain::CheckpointOptions;
  using refrain::RecomputeMode;
  const refrain::OffloadStore store{refrain::OffloadOptions().min_bytes(0)};
  const refrain::ActivationCheckpointing activations(refrain::ActivationCheckpointingOptions().cpu_checkpointing(true));
  const refrain::ActivationCheckpointing contiguous(
      refrain::ActivationCheckpointingOptions().contiguous_memory_optimization(true).number_checkpoints(4));
  for (const auto& options : {CheckpointOptions(), CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction),
                              CheckpointOptions().policy(refrain::save_matmuls()),
                              CheckpointOptions().policy(refrain::offload_compute_intensive()).offload(store),
                              activations.options(CheckpointOptions()), contiguous.options(CheckpointOptions()),
                              activations.options(CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction))})
    expect_same_bits([&] { return blocks(options); });
}

// Found by random programs: a replay for the backward inside gave the overwritten value bytes once more, and when those were gone the first
// region ended without it.
TEST_F(CapTogether, WhatAnotherRegionOverwroteIsReplayedAgainAfterItsOwnHasEnded) {
  for (const bool dies_first : {false, true})
    for (const bool has_ancestors : {false, true})
      expect_same_bits([&] {
        torch::manual_seed(4);
        auto w = torch::randn({64, 64}).requires_grad_();
        const auto s = w.sin();
        std::vector<Tensor> first = refrain::checkpoint([&] {
          return std::vector<Tensor>{(has_ancestors ? s.add(1) : s) * 2, s.cos()};
        });
        auto loss = refrain::checkpoint([&] {
          const auto u = w.tanh();
          first[0].mul_(0.7);
          const auto v = first[0].cos();
          if (dies_first) first[0].reset();
          const auto inside = torch::autograd::grad({(u * v).sum()}, {w}, {}, /*retain_graph=*/true)[0];
          if (dies_first) first.clear();
          return (u * v * inside).sum();
        });
        first.clear();
        loss.backward();
        return bits_of(w.grad());
      });
}

// The same of a value that a region inside read: the replay of that one gives it its bytes.
TEST_F(CapTogether, WhatWasOverwrittenAndReadByARegionInsideIsReplayedAgainAfterItsOwnHasEnded) {
  expect_same_bits([] {
    torch::manual_seed(4);
    auto w = torch::randn({64, 64}).requires_grad_();
    const auto s = w.sin();
    std::vector<Tensor> first = refrain::checkpoint([&] {
      const auto old = s * 2;
      return std::vector<Tensor>{old, refrain::checkpoint([&] { return (old + s).exp(); })};
    });
    auto other = first[1].sum();
    auto loss = refrain::checkpoint([&] {
      const auto u = w.tanh();
      first[0].mul_(0.7);
      const auto v = first[0].cos();
      auto all = (u * v).sum() + other;
      first.clear();
      other.reset();
      const auto inside = torch::autograd::grad({all}, {w}, {}, /*retain_graph=*/true)[0];
      all.reset();
      return (u * v * inside).sum();
    });
    loss.backward();
    return bits_of(w.grad());
  });
}

TEST_F(CapTogether, WhatIsMarkedToBeOffloadedMayHaveBeenEvicted) {
  const refrain::OffloadStore store{refrain::OffloadOptions().min_bytes(0)};
  const auto options = refrain::CheckpointOptions().offload(store).policy(
      [](const refrain::OpContext&) { return refrain::CheckpointPolicy::kPreferRecompute; });
  for (const bool inside : {true, false})
    expect_same_bits([&] {
      torch::manual_seed(4);
      auto w = torch::randn({64, 64}).requires_grad_();
      const auto made_before = inside ? Tensor() : w.sin();
      refrain::checkpoint(options, [&] {
        const auto y = inside ? w.sin() : made_before;
        const auto z = w.cos().exp();
        return (refrain::set_policy(y, refrain::CheckpointPolicy::kOffload) * z).sum();
      }).backward();
      return bits_of(w.grad());
    });
}

/// Needs the room that what it is to store takes, and declines that.
struct CrowdedStore : refrain::tape::OffloadStore {
  std::shared_ptr<refrain::tape::Offloaded> store(const c10::Storage& bytes) override {
    const void* const before = bytes.data();
    evict_all();
    EXPECT_EQ(before, bytes.data()) << "evicted while it is read";
    ++calls;
    return nullptr;
  }
  int calls = 0;
};

TEST_F(CapTogether, WhatIsMarkedToBeOffloadedStaysWhileItIsStored) {
  CrowdedStore store;
  refrain::tape::set_offload_store({std::shared_ptr<void>(), &store});
  const auto options = refrain::CheckpointOptions().policy(
      [](const refrain::OpContext&) { return refrain::CheckpointPolicy::kPreferRecompute; });
  {
    const MemoryCap cap(kNoLimit, every_byte());
    auto w = torch::randn({64, 64}).requires_grad_();
    const auto y = w.sin();
    refrain::checkpoint(options, [&] {
      return (refrain::set_policy(y, refrain::CheckpointPolicy::kOffload) * w.cos()).sum();
    }).backward();
    EXPECT_EQ(bits_of(w.grad()), bits_of(w.cos() * w.cos() - w.sin() * w.sin()));
  }
  refrain::reset_offload_store();
  EXPECT_EQ(store.calls, 1);
}

TEST_F(CapTogether, AnyAllocationOfARegionThatRunsAgainMayFail) {
  const auto options = refrain::CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  const auto want = blocks(options);
  for (const bool capped : {false, true}) {
    std::optional<MemoryCap> cap;
    if (capped) cap.emplace(kNoLimit, every_byte());
    int failures = 0, swallowed = 0;
    for (int64_t n = 1;; ++n) {
      refrain::memory_testing::fail_nth_allocation(n);
      bool failed = false;
      std::string got;
      try {
        got = blocks(options);
      } catch (const c10::OutOfMemoryError&) {
        failed = true;
      }
      const bool fired = refrain::memory_testing::failure_fired();
      refrain::memory_testing::fail_nth_allocation(0);
      ASSERT_TRUE(failed || got == want) << "allocation " << n << " failed, and the numbers are others";
      swallowed += fired && !failed;
      if (!fired) break;
      ++failures;
      ASSERT_TRUE(want == blocks(options)) << "after allocation " << n << " failed";
    }
    EXPECT_GT(failures, 50);
    EXPECT_LE(swallowed, 4 * (1 + capped)) << "a look at a generator, once a region, that may do without";
  }
}

TEST_F(CapTogether, WhatAutogradSavesGoesToAStore) {
  const refrain::OffloadStore store{refrain::OffloadOptions().min_bytes(0)};
  expect_same_bits([&] {
    torch::manual_seed(4);
    auto w = (torch::randn({64, 64}) / 8).requires_grad_();
    auto h = torch::randn({64, 64});
    {
      const refrain::OffloadScope scope(store);
      for (int i = 0; i < 6; ++i) h = torch::gelu(torch::dropout(h.matmul(w), 0.2, true)).sin();
    }
    h.sum().backward();
    return bits_of(w.grad());
  });
}

TEST_F(CapTogether, InputsInAStoreComeBack) {
  const auto w = numbers();
  const refrain::ActivationCheckpointing activations(refrain::ActivationCheckpointingOptions().cpu_checkpointing(true));
  const auto want = bits_of(w.exp()) + bits_of(w.exp().sin());
  MemoryCap cap(kNoLimit);
  const auto p = w.detach().requires_grad_();
  const auto x = p.exp();
  const auto y = refrain::checkpoint(
      activations.options(), [](const Tensor& t) { return t.sin(); }, x);
  evict_all();
  EXPECT_TRUE(want == bits_of(x) + bits_of(y));
  evict_all();
  (x.cos() * y).sum().backward();
  evict_all();
  EXPECT_TRUE(want == bits_of(x) + bits_of(y));
}

// What is in memory in the middle of backward, when that of the second region is done.
Bytes left_in_backward() {
  const Bytes level = refrain::memory_stats().current;
  const auto x = torch::ones({64, 64}).requires_grad_();
  Bytes left = 0;
  {
    auto a = x.sin();
    a.register_hook([&](const Tensor&) { left = refrain::memory_stats().current - level; });
    auto h = refrain::checkpoint([&] { return a.exp().sin(); });
    a.reset();
    auto y = refrain::checkpoint([&] { return h.exp().sum(); });
    h.reset();
    (y * 2).backward();
  }
  return left;
}

TEST_F(CapTogether, InputsOfARegionGoWhenItsBackwardIsDone) {
  left_in_backward();
  const Bytes plain = left_in_backward();
  MemoryCap cap(kNoLimit);
  EXPECT_LE(left_in_backward(), plain + 64);
}

// --- what stays -------------------------------------------------------------------------------------------------------

TEST_F(CapTogether, ParametersMadeUnderTheCapHinderNothing) {
  MemoryCap cap(kNoLimit);
  auto w = torch::randn({64, 64}).requires_grad_();
  auto average = torch::zeros({64, 64});
  for (int step = 0; step < 3; ++step) {
    w.mutable_grad() = Tensor();
    const auto y = w.sin(), z = y * average;
    evict_all();
    EXPECT_THROW(y.const_data_ptr(), c10::Error) << "step " << step << ": what is computed from a parameter stays";
    EXPECT_THROW(z.const_data_ptr(), c10::Error) << "step " << step << ": what is computed from an average stays";
    (y * z).sum().backward();
    torch::NoGradGuard no_grad;
    w.add_(w.grad(), -0.1);
    average.mul_(0.9).add_(w.grad(), 0.1);
  }
}

TEST_F(CapTogether, DeadOperatorsAreNoReasonToRefuse) {
  const auto w = torch::ones({64, 64}).requires_grad_();
  const auto step = [&] {
    w.mutable_grad() = Tensor();
    auto h = w * 1;
    for (int i = 0; i < 20; ++i) h = torch::dropout(h.sin(), 0.1, true);
    h.sum().backward();
    return bits_of(w.grad());
  };
  const auto seeded = [&] {
    torch::manual_seed(1);
    return step();
  };
  const auto want = seeded();
  w.mutable_grad() = Tensor();
  const Bytes level = refrain::memory_stats().current;
  Bytes least = 0;
  for (Bytes limit = 0; least == 0; limit += 2000) {
    try {
      MemoryCap cap(level + limit);
      seeded();
      least = limit;
    } catch (const refrain::OutOfMemory&) {
    }
  }
  w.mutable_grad() = Tensor();
  // while it lives, the forward below has 30 generator states of 5,056 bytes, ten more than the step
  MemoryCap cap(level + least + 60'000);
  for (int i = 0; i < 3; ++i) {
    // a forward that nobody continues leaves operators of values that are gone
    const Bytes before = refrain::memory_stats().current;
    auto h = w.detach();
    for (int k = 0; k < 30; ++k) h = torch::dropout(h.sin(), 0.1, true);
    h.reset();
    EXPECT_EQ(refrain::tape_stats().live_ops, 0) << i;
    EXPECT_LE(refrain::memory_stats().current, before) << i;
    EXPECT_TRUE(want == seeded()) << i;
  }
}

// --- exceptions -------------------------------------------------------------------------------------------------------

struct Stop : std::runtime_error {
  using std::runtime_error::runtime_error;
};

bool stop_in_forward = false, stop_in_backward = false;

struct Cube : torch::autograd::Function<Cube> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x) {
    const auto square = x * x;
    context->save_for_backward({x, square});
    context->saved_data["factor"] = 3.0;
    if (stop_in_forward) throw Stop("forward");
    return square * x;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto half = gradients[0] * saved[1];
    if (stop_in_backward) throw Stop("backward");
    return {half * context->saved_data["factor"].toDouble() + 0 * saved[0]};
  }
};

TEST_F(CapTogether, UserCodeMayThrow) {
  const auto x = numbers();
  const auto step = [&] {
    auto w = x.detach().requires_grad_();
    auto h = w.sin();
    for (int i = 0; i < 4; ++i) h = Cube::apply(h.cos());
    refrain::checkpoint([&] { return Cube::apply(h); }).sum().backward();
    return bits_of(w.grad());
  };
  const auto want = step();
  const Bytes level = refrain::memory_stats().current;
  const Bytes peak = [&] {
    const refrain::MemoryScope scope;
    step();
    return scope.peak();
  }();
  MemoryCap cap(level + peak * 8 / 10);
  const auto live_before = live();
  for (int i = 0; i < 12; ++i) {
    stop_in_forward = i % 3 == 0;
    stop_in_backward = i % 3 == 1;
    std::optional<Torture> torture;
    if (i % 2 == 0) torture.emplace();
    if (i % 3 < 2) {
      MemoryCap inner(level + peak * 7 / 10);
      EXPECT_THROW(step(), Stop);
    }
    stop_in_forward = stop_in_backward = false;
    ASSERT_TRUE(want == step()) << i;
  }
  EXPECT_GT(cap.stats().recomputes, 0);
  flush_engine();
  EXPECT_EQ(live().slots, live_before.slots);
  EXPECT_EQ(live().regions, live_before.regions);
}

TEST_F(CapTogether, ACapMayEndByAnException) {
  const auto y = numbers();
  Tensor kept;
  try {
    MemoryCap cap(kNoLimit);
    kept = y.exp();
    evict_all();
    throw Stop("ends the cap");
  } catch (const Stop&) {
  }
  EXPECT_NO_THROW(kept.const_data_ptr());
  expect_bit_equal(y.exp(), kept);
}

// --- threads ----------------------------------------------------------------------------------------------------------

/// Batches that other threads make, `most` ahead.
class Loader {
 public:
  Loader(int count, int threads, size_t most) : count_(count), most_(most) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Loader() {
    {
      std::lock_guard guard(mutex_);
      count_ = 0;
    }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  Tensor next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_.count(taken_) > 0; });
    auto batch = std::move(ready_[taken_]);
    ready_.erase(taken_++);
    changed_.notify_all();
    return batch;
  }

  static Tensor make(int number) {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(number));
    auto raw = torch::empty({64, 64});
    auto* data = raw.data_ptr<float>();
    for (int64_t i = 0; i < raw.numel(); ++i) data[i] = static_cast<float>((i * 7 + number) % 13);
    const auto noisy = raw + torch::randn({64, 64}, generator);
    return (noisy - noisy.mean(0)) / (noisy.std(0) + 1);
  }

 private:
  void work() {
    for (;;) {
      int mine = 0;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return begun_ >= count_ || begun_ < taken_ + static_cast<int>(most_); });
        if (begun_ >= count_) return;
        mine = begun_++;
      }
      auto batch = make(mine);
      std::lock_guard guard(mutex_);
      ready_[mine] = std::move(batch);
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, Tensor> ready_;
  int count_, begun_ = 0, taken_ = 0;
  const size_t most_;
  std::vector<std::thread> threads_;
};

TEST_F(CapTogether, ADataLoaderInOtherThreads) {
  constexpr int kSteps = 60;
  const auto train = [&](const std::function<Tensor(int)>& batch) {
    torch::manual_seed(1);
    torch::nn::Sequential net(torch::nn::Linear(64, 64), torch::nn::Tanh(), torch::nn::Dropout(0.2),
                              torch::nn::Linear(64, 64));
    torch::optim::SGD sgd(net->parameters(), 0.01);
    std::string losses;
    for (int i = 0; i < kSteps; ++i) {
      sgd.zero_grad();
      const auto x = batch(i);
      auto h = x;
      for (int k = 0; k < 4; ++k) h = net->forward(h);
      const auto loss = (h - x).pow(2).mean();
      loss.backward();
      sgd.step();
      losses += bits_of(loss);
    }
    for (const auto& p : net->parameters()) losses += bits_of(p);
    return losses;
  };
  std::string want;
  const Bytes level = refrain::memory_stats().current;
  const refrain::MemoryScope scope;
  want = train(Loader::make);
  MemoryCap cap(level + scope.peak());
  Loader loader(kSteps, 2, 2);
  EXPECT_TRUE(want == train([&](int) { return loader.next(); }));
  EXPECT_GT(cap.stats().evictions, 0);
}

TEST_F(CapTogether, ThreadsThatComeAndGoWithCapsOfTheirOwn) {
  const auto program = [](int seed) {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed));
    auto w = torch::randn({64, 64}, generator).requires_grad_();
    auto h = w;
    for (int i = 0; i < 12; ++i) h = (h.matmul(w) * 0.1).sin();
    refrain::checkpoint([&] { return h.exp().cos(); }).sum().backward();
    return bits_of(w.grad());
  };
  std::vector<std::string> want;
  for (int i = 0; i < 4; ++i) want.push_back(program(i));
  const Bytes level = refrain::memory_stats().current;
  std::atomic<int> wrong{0}, done{0};
  for (int round = 0; round < 5; ++round) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&, i] {
        for (int k = 0; k < 6; ++k) {
          try {
            MemoryCap own(k % 3 == 0 ? kNoLimit : level + 1200000, k % 2 == 0 ? every_byte() : MemoryCapOptions());
            wrong += program(i) != want[static_cast<size_t>(i)];
            ++done;
          } catch (const refrain::OutOfMemory&) {
          }
        }
      });
    for (auto& thread : threads) thread.join();
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(done, 60);
}

TEST_F(CapTogether, NothingLeavesForWantOfASourceThatIsBeingOverwritten) {
  auto x = numbers();
  MemoryCap cap(kNoLimit, every_byte());
  const auto y = x * 2;
  {
    const Torture torture;  // `y` is asked to leave when `mul_` has begun
    x.mul_(3);
  }
  EXPECT_EQ(bits_of(y), bytes_of(numbers() * 2));
}

TEST_F(CapTogether, NothingLeavesWhileTheCapEnds) {
  const auto x = numbers();
  const Torture torture;
  std::optional<MemoryCap> cap(std::in_place, kNoLimit, every_byte());
  const auto y = x * 2, z = y + 1;
  evict_all();
  const auto w = x.sin();
  cap.reset();
  EXPECT_EQ(evicted_bytes(), 0);
  EXPECT_EQ(bytes_of(w), bytes_of(x.sin()));
  EXPECT_EQ(bytes_of(z), bytes_of(x * 2 + 1));
}

TEST_F(CapTogether, WhatRegionsReadMayBeOverwrittenUnderACap) {
  const auto program = [](bool capped) {
    std::optional<MemoryCap> cap;
    if (capped) cap.emplace(kNoLimit, every_byte());
    auto w = numbers().requires_grad_();
    auto outside = numbers(), factor = numbers() + 1;
    auto made = torch::zeros_like(outside) + 0.5;
    made.mul_(factor);
    Tensor parts, fresh;
    const auto first = refrain::checkpoint([&] {
      fresh = outside.cos();
      return (w * outside.cos()).sin() + (w * made.sin()).sin();
    });
    const auto second = refrain::checkpoint([&] {
      parts = w * fresh.sin();
      fresh.tanh_();
      return (parts.sin() + made.sin() * w).exp().sin();
    });
    outside.slice(0, 0, 7).copy_(outside.slice(0, 7, 14));
    made.sigmoid_();
    factor.mul_(0.9);
    parts.reset();
    (first + second).sum().backward();
    return bits_of(w.grad());
  };
  EXPECT_EQ(program(true), program(false));
}

}  // namespace
}  // namespace refrain_test
