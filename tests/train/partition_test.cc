// partition_activations on ranks that are real processes.
#include "refrain/activation_checkpointing.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <fmt/format.h>

#include "tests/train/ranks.h"

namespace refrain_test {
namespace {

using refrain::ActivationCheckpointing;
using refrain::ActivationCheckpointingOptions;
using refrain::CheckpointOptions;
using refrain::DistributedError;
using refrain::MemoryScope;
using refrain::ProcessGroup;
using refrain::RecomputeMode;
using torch::Tensor;

constexpr RecomputeMode kSources[] = {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction};

ActivationCheckpointingOptions partitioned() { return ActivationCheckpointingOptions().partition_activations(true); }

CheckpointOptions with(const ActivationCheckpointing& activations,
                       RecomputeMode source = RecomputeMode::kReplayOperators) {
  return activations.options(CheckpointOptions().recompute_mode(source));
}

Tensor block(const Tensor& x, const Tensor& w) { return torch::gelu(torch::dropout(x.mm(w), 0.2, true)); }

/// How a program runs a function: in a region, or plainly.
struct Region {
  const CheckpointOptions* options;
  template <typename F, typename... Args>
  Tensor operator()(const F& fn, const Args&... args) const {
    return options ? refrain::checkpoint(*options, fn, args...) : fn(args...);
  }
};

/// Loss of `program(region, w)`, and gradients by `w` after one backward and after two.
template <typename Program>
std::vector<Tensor> gradients(const Program& program, const CheckpointOptions* options) {
  torch::manual_seed(3);
  auto w = (torch::randn({24, 24}) / 4).requires_grad_();
  Tensor loss = program(Region{options}, w);
  loss.backward({}, true);
  const auto first = w.grad().clone();
  loss.backward();  // adds the same again
  return {loss.detach(), first, w.grad()};
}

/// With inputs partitioned they are those of a plain run, in both sources.
template <typename Program>
void expect_same(const ActivationCheckpointing& activations, const Program& program) {
  const auto plain = gradients(program, nullptr);
  for (const auto source : kSources) {
    const auto options = with(activations, source);
    const auto got = gradients(program, &options);
    for (size_t i = 0; i < plain.size(); ++i)
      EXPECT_TRUE(torch::equal(plain[i], got[i])) << i << " of source " << static_cast<int>(source);
  }
}

const auto chain = [](const Region& region, const Tensor& w) {
  auto x = torch::randn({7, 24});
  for (int i = 0; i < 3; ++i) x = region(block, x, w);
  return x.sum();
};

/// Bytes over those before, after a forward of `n` regions of `rows` x 24 inputs, with its result in hand.
int64_t kept_after_forward(const CheckpointOptions& options, int n, int64_t rows) {
  refrain::install_memory_tracking();
  const auto level = refrain::memory_stats().current;
  int64_t kept = 0;
  {
    const auto w = (torch::randn({24, 24}) / 4).requires_grad_();
    auto x = torch::randn({rows, 24});
    MemoryScope memory;
    for (int i = 0; i < n; ++i) x = refrain::checkpoint(options, block, x, w);
    kept = memory.current();
    x.sum().backward();
  }
  // Gloo's threads let go of what they gathered a moment after the call: it must not count in the next measurement.
  for (int i = 0; i < 500 && refrain::memory_stats().current > level; ++i) std::this_thread::sleep_for(1ms);
  return kept;
}

void expect_kept_is_divided_by(int ranks) {
  run_ranks(ranks, [&](const ProcessGroup& group) {
    for (const int64_t rows : {40, 37}) {
      const int64_t input = rows * 24 * 4, part = (input + ranks - 1) / ranks;
      for (const auto source : kSources) {
        torch::manual_seed(3);
        const auto whole = kept_after_forward(CheckpointOptions().recompute_mode(source), 5, rows);
        const ActivationCheckpointing activations(partitioned().profile(true), group);
        torch::manual_seed(3);
        const auto divided = kept_after_forward(with(activations, source), 5, rows);
        EXPECT_EQ(whole - divided, 5 * (input - part));
        const auto region = activations.report().regions.at(0);
        EXPECT_EQ(region.input_bytes, 5 * input);
        EXPECT_EQ(region.kept_bytes, 5 * part);
        if (group.rank() == 0 && source == RecomputeMode::kReplayOperators)
          std::printf("%d ranks: %lld bytes of inputs, %lld kept\n", ranks, static_cast<long long>(region.input_bytes),
                      static_cast<long long>(region.kept_bytes));
      }
    }
  });
}

TEST(Partition, TwoRanksKeepHalfOfTheInputs) { expect_kept_is_divided_by(2); }
TEST(Partition, FourRanksKeepAQuarter) { expect_kept_is_divided_by(4); }

TEST(Partition, EqualToTheBitWithDropoutAndTwoBackwards) {
  run_ranks(2, [](const ProcessGroup& group) { expect_same(ActivationCheckpointing(partitioned(), group), chain); });
}

TEST(Partition, ThreeRanksAndSizesThatDoNotDivide) {
  run_ranks(3, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    expect_same(activations, [](const Region& region, const Tensor& w) {
      auto loss = torch::zeros({});
      for (const int64_t rows : {2, 3, 5, 11}) {
        auto x = region(block, torch::randn({rows, 24}), w).slice(1, 1, 24);
        loss = loss + region([](const Tensor& h) { return h.exp(); }, x.t()).sum();
      }
      return loss;
    });
  });
}

// The parts are of one size, so the last one is padded.
TEST(Partition, AGatheredInputIsAsLargeAsItWas) {
  run_ranks(3, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    const auto options = with(activations, RecomputeMode::kRerunFunction);
    const auto w = torch::randn({11, 11}).requires_grad_();
    std::vector<size_t> bytes;
    const auto y = refrain::checkpoint(
        options,
        [&](const Tensor& x) {
          bytes.push_back(x.storage().nbytes());
          return x.mm(w).exp();
        },
        torch::ones({7, 11}));
    y.sum().backward();
    EXPECT_EQ(bytes, std::vector<size_t>(2, 7 * 11 * sizeof(float)));
  });
}

TEST(Partition, TinyUndefinedBoolAndIntegerInputsAndOneOfSeveralRegions) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    expect_same(activations, [](const Region& region, const Tensor& w) {
      const auto index = torch::arange(40).remainder(24), mask = torch::randn({40, 24}).gt(0);
      const auto scale = torch::randn({1}), none = Tensor();
      auto loss = torch::zeros({});
      for (int i = 0; i < 3; ++i)
        loss = loss + region(
                          [&](const Tensor& at, const Tensor& keep, const Tensor& by, const Tensor& bias) {
                            auto y = (torch::embedding(w, at) * by).masked_fill(keep, 0.5).exp();
                            return bias.defined() ? y + bias : y;
                          },
                          index, mask, scale, none)
                          .sum();
      return loss;
    });
  });
}

TEST(Partition, NestedRegions) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    expect_same(activations, [](const Region& region, const Tensor& w) {
      auto x = torch::randn({9, 24});
      const auto mask = torch::randn({9, 24});
      for (int i = 0; i < 2; ++i)
        x = region(
            [=](const Tensor& h) {
              return region([w](const Tensor& in, const Tensor& m) { return (in.mm(w) * m).tanh(); }, h.sin(), mask)
                  .exp();
            },
            x);
      return x.sum();
    });
  });
}

TEST(Partition, PartsMayLieInArenas) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned().contiguous_memory_optimization(true).number_checkpoints(3),
                                              group);
    expect_same(activations, chain);
    const auto arena = activations.report().arenas.at(0);
    EXPECT_EQ(arena.slot_bytes, 7 * 24 * 4 / 2);
    EXPECT_EQ(arena.slots, 3);
    EXPECT_EQ(arena.in_use, 0);
  });
}

TEST(Partition, ADeepSpeedConfigurationOnAGroupOfOneKeepsAll) {
  run_ranks(1, [](const ProcessGroup& group) {
    const auto options = ActivationCheckpointingOptions::from_deepspeed_json(
        R"({"activation_checkpointing": {"partition_activations": true, "profile": true}})");
    const ActivationCheckpointing activations(options, group);
    expect_same(activations, chain);
    EXPECT_EQ(activations.report().regions.at(0).kept_bytes, activations.report().regions.at(0).input_bytes);
  });
}

// All ranks must fetch, whoever could do without.
TEST(Partition, OneRankHoldsATensorThatTheOthersDropped) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    for (const auto source : kSources) {
      std::vector<Tensor> kept;
      torch::manual_seed(3);
      const auto w = (torch::randn({24, 24}) / 4).requires_grad_();
      auto x = torch::randn({7, 24});
      for (int i = 0; i < 3; ++i) {
        if (group.rank() == 0) kept.push_back(x);
        x = refrain::checkpoint(with(activations, source), block, x, w);
      }
      x.sum().backward();
      torch::manual_seed(3);
      const auto plain = (torch::randn({24, 24}) / 4).requires_grad_();
      x = torch::randn({7, 24});
      for (int i = 0; i < 3; ++i) x = block(x, plain);
      x.sum().backward();
      EXPECT_TRUE(torch::equal(plain.grad(), w.grad()));
    }
  });
}

TEST(Partition, RanksWithOtherDataAreRefused) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    torch::manual_seed(3);
    const auto w = torch::randn({24, 24}).requires_grad_();
    torch::manual_seed(static_cast<uint64_t>(group.rank()));
    auto loss = refrain::checkpoint(with(activations), block, torch::randn({7, 24}), w).sum();
    expect_has(message_of<DistributedError>([&] { loss.backward(); }),
               {fmt::format("ranks {} and {} have different bytes", group.rank(), 1 - group.rank()),
                "cpu_checkpointing", "region input 0 (672 bytes)"});
  });
}

TEST(Partition, RanksWithOtherSizesAreRefused) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    const auto w = torch::ones({24, 24}).requires_grad_();
    auto loss = refrain::checkpoint(with(activations), block, torch::ones({7 + group.rank(), 24}), w).sum();
    expect_has(
        message_of<DistributedError>([&] { loss.backward(); }),
        {"ranks ask for different region inputs", "input 0 (672 bytes)", "input 0 (768 bytes)", "in the same order"});
  });
}

TEST(Partition, RanksInAnotherOrderAreRefused) {
  run_ranks(2, [](const ProcessGroup& group) {
    const ActivationCheckpointing activations(partitioned(), group);
    const auto w = torch::ones({24, 24}).requires_grad_();
    auto first = refrain::checkpoint(with(activations), block, torch::ones({7, 24}), w).sum();
    auto second = refrain::checkpoint(with(activations), block, torch::ones({7, 24}), w).sum();
    expect_has(message_of<DistributedError>([&] { (group.rank() == 0 ? first : second).backward(); }),
               {"ranks ask for different region inputs", "input 0", "input 1"});
  });
}

/// Rank 1 forwards and then does `instead` of backward; returns how rank 0 ended, which goes back.
Ended rank_0_without_rank_1(const std::function<void()>& instead) {
  const int port = refrain::free_port();
  return run_processes(2, [&](int rank) {
    const auto group = refrain::init_process_group(rank_options(rank, 2, port).timeout(1s));
    const ActivationCheckpointing activations(partitioned(), group);
    const auto w = torch::ones({24, 24}).requires_grad_();
    auto loss = refrain::checkpoint(with(activations), block, torch::ones({7, 24}), w).sum();
    group.barrier();
    if (rank == 1) return instead();
    loss.backward();
  })[0];
}

TEST(Partition, AKilledRankIsNoticed) {
  const auto ended = rank_0_without_rank_1([] { kill(getpid(), SIGKILL); });
  EXPECT_EQ(ended.exit_code, 2);
  expect_has(ended.error, {"failed on rank 0 of 2", "region input 0 (672 bytes)"});
  EXPECT_LT(ended.after, 15s);
}

TEST(Partition, ARankThatDoesNotComeIsATimeout) {
  const auto ended = rank_0_without_rank_1([] { std::this_thread::sleep_for(5s); });
  EXPECT_EQ(ended.exit_code, 2);
  expect_has(ended.error, {"failed on rank 0 of 2", "region input 0 (672 bytes)"});
}

// --- synchronize_checkpoint_boundary --------------------------------------------------------------------------------

/// A device that computes nothing and counts who waits for it.
struct CountingDevice final : c10::impl::DeviceGuardImplInterface {
  static inline int waited = 0;
  static inline const c10::Device kDevice{c10::DeviceType::PrivateUse1, 0};
  c10::DeviceType type() const override { return kDevice.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(c10::DeviceIndex) const override { ++waited; }
};

struct CountingDeviceHooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
};

TEST(SynchronizeCheckpointBoundary, WaitsAtBothEndsInForwardAndBackward) {
  const auto ended = run_processes(1, [](int) {
    c10::register_privateuse1_backend("counting");
    static const CountingDevice device;
    static CountingDeviceHooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
    const c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::PrivateUse1, &device);
    for (const auto source : kSources) {
      for (const bool synchronizes : {false, true}) {
        const ActivationCheckpointing activations(
            ActivationCheckpointingOptions().synchronize_checkpoint_boundary(synchronizes));
        const auto w = torch::ones({24, 24}).requires_grad_();
        const auto options = with(activations, source).preserve_rng_state(false);
        const int before = CountingDevice::waited;
        auto loss =
            refrain::checkpoint(
                options, [](const Tensor& h, const Tensor& v) { return h.mm(v).tanh(); }, torch::ones({7, 24}), w)
                .sum();
        EXPECT_EQ(CountingDevice::waited - before, synchronizes ? 2 : 0);
        loss.backward();
        EXPECT_EQ(CountingDevice::waited - before, synchronizes ? 4 : 0);
      }
    }
  });
  EXPECT_EQ(ended[0].exit_code, 0) << ended[0].error;
}

}  // namespace
}  // namespace refrain_test
