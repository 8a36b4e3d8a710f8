// Regions that offload to a disk: gradients to the bit, bytes to the byte, and faults that leave training as it was.
#include <optional>
#include <thread>

#include "refrain/activation_checkpointing.h"
#include "tests/offload/offload_fixture.h"

namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::CheckpointOptions;
using refrain::CheckpointPolicy;
using refrain::OffloadOptions;
using refrain::OffloadStore;
using refrain::Policy;

Policy everything() {
  return [](const refrain::OpContext&) { return CheckpointPolicy::kOffload; };
}

CheckpointOptions to(const OffloadStore& store, Policy policy = everything()) {
  return CheckpointOptions().policy(std::move(policy)).offload(store);
}

struct OffloadRegion : OffloadTest {
  OffloadRegion() : OffloadTest(OffloadOptions().min_bytes(0).max_in_flight(4096)) {}
  void expect_same_under_all(const Program& program) {
    FakeDisk other_disk;
    const auto written_at_once = other_disk.store(OffloadOptions().min_bytes(0).max_in_flight(0));
    for (const auto& policy :
         {everything(), refrain::offload_compute_intensive(), refrain::offload_larger_than(1024)}) {
      expect_same(program, to(store, policy));
      expect_same(program, to(written_at_once, policy));
    }
    EXPECT_GT(store.stats().fetches, 0) << "nothing was offloaded: this test tests nothing";
    EXPECT_GT(written_at_once.stats().read_bytes, 0);
    EXPECT_EQ(written_at_once.stats().stored_bytes, 0);
  }
};

Tensor attention_block(Trial& run, Tensor x, const Tensors& w) {
  return run.region([=] {
    auto h = torch::layer_norm(x, {16});
    auto qkv = torch::linear(h, w[0], w[1]).view({2, 6, 3, 2, 8}).permute({2, 0, 3, 1, 4});
    auto a = torch::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], {}, 0.0, true);
    auto y = x + torch::dropout(a.transpose(1, 2).reshape({2, 6, 16}), 0.2, true);
    return y + torch::linear(torch::gelu(torch::linear(y, w[2])), w[3]);
  });
}

TEST_F(OffloadRegion, Transformer) {
  expect_same_under_all([](Trial& run) {
    auto x = run.param({2, 6, 16});
    const Tensors w{run.param({48, 16}), run.param({48}), run.param({64, 16}), run.param({16, 64})};
    for (int i = 0; i < 3; ++i) x = attention_block(run, x, w);
    return x.pow(2).mean();
  });
}

// `cpu_checkpointing` puts the inputs of a region into the region's own store.
TEST_F(OffloadRegion, InputsOfRegionsGoToTheRegionsStore) {
  const refrain::ActivationCheckpointing activations(
      refrain::ActivationCheckpointingOptions().cpu_checkpointing(true).profile(true));
  const auto w = torch::randn({32, 32}).requires_grad_();
  const auto block = [w](const Tensor& t) { return torch::gelu(t.mm(w)).mm(w).sin(); };
  const auto gradient = [&](const std::optional<CheckpointOptions>& options) {
    auto x = torch::ones({16, 32});
    for (int i = 0; i < 3; ++i) x = options ? refrain::checkpoint(*options, block, x) : block(x);
    return torch::autograd::grad({x.sum()}, {w})[0];
  };
  const auto expected = gradient(std::nullopt);
  for (const auto source : {refrain::RecomputeMode::kReplayOperators, refrain::RecomputeMode::kRerunFunction}) {
    const auto before = store.stats();
    const auto options = activations.options(CheckpointOptions().recompute_mode(source).offload(store));
    EXPECT_TRUE(torch::equal(expected, gradient(options)));
    EXPECT_EQ(store.stats().values - before.values, 3);
    EXPECT_GE(store.stats().fetches - before.fetches, 3);
  }
  const auto report = activations.report();
  ASSERT_EQ(report.regions.size(), 1u);
  EXPECT_EQ(report.regions[0].input_bytes, 2 * 3 * 16 * 32 * 4);
  EXPECT_EQ(report.regions[0].kept_bytes, 0);
}

TEST_F(OffloadRegion, ConvolutionsWithBatchNormAndWritesInPlace) {
  expect_same_under_all([](Trial& run) {
    auto x = run.param({2, 3, 8, 8}), w = run.param({4, 3, 3, 3}), v = run.param({4, 4, 3, 3});
    auto gamma = run.param({4}), beta = run.param({4}), mean = torch::zeros({4}), var = torch::ones({4});
    auto y = run.region([&] {
      auto h = torch::batch_norm(torch::conv2d(x, w, {}, 1, 1), gamma, beta, mean, var, true, 0.1, 1e-5, false).relu_();
      h = torch::conv2d(h, v, {}, 1, 1);
      h.add_(1).mul_(0.5);
      return torch::max_pool2d(h.relu_(), 2);
    });
    run.note("mean", mean);
    run.note("var", var);
    return y.pow(2).sum();
  });
}

TEST_F(OffloadRegion, NestedRegionsManyBackwardsAndDoubleBackward) {
  expect_same_under_all([](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    auto y = run.region([&] {
      auto h = x.mm(w).tanh();
      auto k = run.region([&] { return h.mm(w).sigmoid().mm(x); });
      return torch::dropout(k.mm(h), 0.3, true).exp();
    });
    auto loss = y.sum();
    auto g = torch::autograd::grad({loss}, {x}, {}, true, true)[0];
    loss.backward({}, true);
    g.pow(2).sum().backward({}, true);
    return loss;
  });
}

TEST_F(OffloadRegion, ByName) {
  expect_same(
      [](Trial& run) {
        auto x = run.param({8, 8});
        return run.region([&] { return refrain::checkpoint_name(x.mm(x), "a").sin().mm(x).exp(); }).sum();
      },
      to(store, refrain::offload_only_these_names({"a"})));
  EXPECT_EQ(store.stats().values, 1);
  EXPECT_EQ(store.stats().fetches, 1);
  EXPECT_THROW((void)refrain::offload_larger_than(-1), refrain::InvalidArgument);
}

TEST_F(OffloadRegion, TwoThreadsShareAStore) {
  std::vector<std::thread> threads;
  std::atomic<int> equal{0};
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      const auto data = torch::full({16, 16}, 0.01 * (t + 1));
      const auto gradient = [&](bool recorded) {
        auto x = data.clone().requires_grad_();
        const auto fn = [&] { return x.mm(x).sin().mm(x).exp().mm(x).sum(); };
        (recorded ? refrain::checkpoint(to(store), fn) : fn()).backward();
        return x.grad();
      };
      for (int i = 0; i < 30; ++i) equal += bytes_of(gradient(true)) == bytes_of(gradient(false));
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(equal, 60);
}

/// What forward leaves in memory once all is written, and what the store has then.
std::pair<Bytes, Bytes> after_forward(const OffloadStore& store, const std::function<Tensor()>& forward) {
  refrain::MemoryScope memory;
  auto loss = forward();
  store.flush();
  const std::pair left(memory.current(), store.stats().stored_bytes);
  loss.backward();
  return left;
}

TEST_F(OffloadRegion, WhatLeavesMemoryIsWhatWasOffloadedToTheByte) {
  // multiples of the file's pages, so that its bytes are those of the values; numbers stay in memory
  store = disk.store(OffloadOptions().min_bytes(16384));
  auto x = torch::randn({64, 64}).requires_grad_(), w = torch::randn({64, 64}).requires_grad_();
  x.sum().add(w.sum()).backward();
  const auto fn = [&] { return x.mm(w).sin().mm(w).exp().sum(); };
  const auto [plain, none] = after_forward(store, fn);
  const auto [left, stored] = after_forward(store, [&] { return refrain::checkpoint(to(store), fn); });
  EXPECT_EQ(none, 0);
  EXPECT_EQ(stored, 3 * 16384) << "the products that sin and exp read, and what the second product reads";
  EXPECT_EQ(left, plain - stored);
}

/// Has memory for no copy.
struct FullStore : refrain::tape::OffloadStore {
  std::shared_ptr<refrain::tape::Offloaded> store(const c10::Storage&) override {
    ++asked;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "no memory");
  }
  int asked = 0;
};

TEST_F(OffloadRegion, WhatAStoreHasNoMemoryForIsKept) {
  const auto full = std::make_shared<FullStore>();
  const auto before = refrain::tape::set_offload_store(full);
  expect_same(
      [](Trial& run) {
        auto x = run.param({4, 4});
        return run.region([=] { return x.mm(x).add_(1).mul_(x).exp(); }).sum();
      },
      CheckpointOptions().policy(everything()));
  refrain::tape::set_offload_store(before);
  EXPECT_GT(full->asked, 0);
}

TEST_F(OffloadRegion, AnExceptionInForwardLeavesNothingBehind) {
  auto x = torch::randn({32, 32}).requires_grad_();
  EXPECT_THROW(refrain::checkpoint(to(store),
                                   [&]() -> Tensor {
                                     auto y = x.mm(x).sin();
                                     throw std::runtime_error("no");
                                     return y;
                                   }),
               std::runtime_error);
  store.flush();
  EXPECT_EQ(store.stats().stored_bytes, 0);
}

/// A model in training: `step` is one of SGD.
struct Training {
  explicit Training(std::optional<CheckpointOptions> o) : options(std::move(o)) {
    torch::manual_seed(3);
    for (int i = 0; i < 3; ++i) weights.push_back(torch::randn({32, 32}).mul_(0.1).requires_grad_());
  }
  double step() {
    const auto input = torch::ones({32, 32});
    const auto fn = [&] {
      auto h = input;
      for (const auto& w : weights) h = h.mm(w).tanh();
      return h.pow(2).mean();
    };
    auto loss = options ? refrain::checkpoint(*options, fn) : fn();
    for (auto& w : weights) w.mutable_grad().reset();
    loss.backward();
    torch::NoGradGuard no_grad;
    for (auto& w : weights) w.sub_(w.grad(), 0.5);
    return loss.item<double>();
  }
  std::optional<CheckpointOptions> options;
  Tensors weights;
};

TEST_F(OffloadRegion, FaultsLeaveTrainingAsItWasAndTheNextStepWorks) {
  Training plain(std::nullopt);
  std::vector<double> losses;
  for (int i = 0; i < 4; ++i) losses.push_back(plain.step());

  Training mine(to(store));
  EXPECT_EQ(mine.step(), losses[0]);
  const auto fault = [&](std::atomic<bool>& switch_on, const std::string& says) {
    switch_on = true;
    const auto before = bytes_of(torch::cat(mine.weights));
    const auto why = message_of<refrain::OffloadError>([&] { mine.step(); });
    EXPECT_NE(why.find(says), std::string::npos) << why;
    switch_on = false;
    flush_engine();
    EXPECT_EQ(bytes_of(torch::cat(mine.weights)), before);
  };
  fault(disk.ends_early, "the file is truncated");
  EXPECT_EQ(mine.step(), losses[1]);
  fault(disk.fails_to_read, "Input/output error");
  fault(disk.flips_bits, "are not those that were written");
  EXPECT_EQ(mine.step(), losses[2]);
  disk.fails_to_write = true;
  EXPECT_EQ(mine.step(), losses[3]);
  EXPECT_GT(store.stats().refused, 0);
  for (size_t i = 0; i < 3; ++i) expect_bit_equal(plain.weights[i], mine.weights[i]);
}

TEST_F(OffloadRegion, OnAFullDiskAllGoesOnInMemory) {
  disk.room = 3 * 4096;
  Training plain(std::nullopt), mine(to(store));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(plain.step(), mine.step());
  const auto stats = store.stats();
  EXPECT_GT(stats.refused, 0);
  EXPECT_GT(stats.read_bytes, 0);
  EXPECT_NE(stats.problem.find("No space left on device"), std::string::npos) << stats.problem;
  FakeDisk full;
  full.room = 0;
  Training strict(to(full.store(OffloadOptions().min_bytes(0).strict(true))));
  EXPECT_THROW(strict.step(), refrain::OffloadError);
}

TEST_F(OffloadRegion, TheDefaultStoreIsThatOfTheProcess) {
  refrain::set_offload_store(store);
  const Program program = [](Trial& run) {
    auto x = run.param({8, 8});
    return run.region([&] { return x.mm(x).sin().exp(); }).sum();
  };
  expect_same(program, CheckpointOptions().policy(everything()));
  EXPECT_GT(store.stats().values, 0);
  refrain::reset_offload_store();
  store.reset_stats();
  expect_same(program, CheckpointOptions().policy(everything()));
  EXPECT_EQ(store.stats().values, 0);
}

TEST_F(OffloadRegion, OnARealDiskAndCompressed) {
  for (const int level : {0, 1}) {
    const auto options = OffloadOptions().store(refrain::OffloadTo::kDisk).min_bytes(0).max_in_flight(0);
    store = OffloadStore(OffloadOptions(options).compress(level));
    expect_same(
        [](Trial& run) {
          auto x = run.param({64, 64});
          return run.region([&] { return x.mm(x).relu().mm(x).relu().mm(x); }).sum();
        },
        to(store));
    const auto stats = store.stats();
    EXPECT_GT(stats.written_bytes, 0);
    if (level > 0) {
      EXPECT_LT(stats.written_bytes, stats.value_bytes);
    }
  }
}

}  // namespace
}  // namespace refrain_test
