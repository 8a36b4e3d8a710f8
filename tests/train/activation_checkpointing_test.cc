// Region inputs in stores, on one rank: what is kept, that nothing changes by it, and what the report says.
#include "refrain/activation_checkpointing.h"

#include <nlohmann/json.hpp>

#include "intercept/storage_copy.h"
#include "tape/offload.h"
#include "tests/tape/sources.h"

namespace refrain_test {
namespace {

using refrain::ActivationCheckpointing;
using refrain::ActivationCheckpointingOptions;
using refrain::MemoryScope;
using refrain::ModuleScope;

/// Keeps bytes where the allocator does not count them, and counts.
class OutsideStore final : public refrain::tape::OffloadStore {
 public:
  class Bytes final : public refrain::tape::Offloaded {
   public:
    Bytes(OutsideStore& store, const c10::Storage& from)
        : store_(store), text_(static_cast<const char*>(from.data()), from.nbytes()) {
      ++store_.live;
    }
    ~Bytes() override { --store_.live; }
    c10::Storage fetch() override {
      if (store_.fails_to_fetch) throw std::runtime_error("the store cannot read");
      ++store_.fetched;
      auto storage = refrain::tape::raw_storage(text_.size(), c10::kCPU);
      std::memcpy(storage.mutable_data(), text_.data(), text_.size());
      return storage;
    }

   private:
    OutsideStore& store_;
    std::string text_;
  };

  std::shared_ptr<refrain::tape::Offloaded> store(const c10::Storage& bytes) override {
    if (fails_to_store) throw std::runtime_error("the store is full");
    ++stored;
    return std::make_shared<Bytes>(*this, bytes);
  }

  int live = 0, stored = 0, fetched = 0;
  bool fails_to_store = false, fails_to_fetch = false;
};

ActivationCheckpointingOptions to_cpu() { return ActivationCheckpointingOptions().cpu_checkpointing(true); }
ActivationCheckpointingOptions packed(int64_t number) {
  return ActivationCheckpointingOptions().contiguous_memory_optimization(true).number_checkpoints(number);
}

class RegionInputs : public BothSources {
 protected:
  void SetUp() override {
    BothSources::SetUp();
    refrain::tape::set_offload_store({std::shared_ptr<void>(), &store_});
  }
  void TearDown() override {
    BothSources::TearDown();
    refrain::reset_offload_store();
    EXPECT_EQ(store_.live, 0) << "inputs that nobody needs are still in the store";
  }

  /// Regions of `program` with their inputs in the store, and in arenas: as a plain run.
  Counts expect_same_stored(const Program& program) {
    const ActivationCheckpointing arenas(packed(2));
    refrain_test::expect_same(program, arenas.options(options()));
    for (const auto& arena : arenas.report().arenas) EXPECT_EQ(arena.in_use, 0);
    const ActivationCheckpointing outside(to_cpu());
    const auto counts = refrain_test::expect_same(program, outside.options(options()));
    EXPECT_GT(store_.stored, 0) << "nothing was stored: this test tests nothing";
    return counts;
  }

  OutsideStore store_;
};
REFRAIN_BOTH_SOURCES(RegionInputs);

const auto block = [](const Tensor& x, const Tensor& w) { return torch::gelu(torch::dropout(x.mm(w), 0.2, true)); };

TEST_P(RegionInputs, AChainOfBlocks) {
  expect_same_stored([](Trial& run) {
    auto x = run.input({8, 8}), w = run.param({8, 8});
    for (int i = 0; i < 4; ++i) x = run.region(block, x, w);
    return x.sum();
  });
  EXPECT_EQ(store_.stored, 4);
  EXPECT_EQ(store_.fetched, 4);
}

TEST_P(RegionInputs, SeveralBackwardsAndDoubleBackward) {
  expect_same_stored([](Trial& run) {
    auto x = run.param({8, 8}), w = run.param({8, 8});
    auto h = run.region(block, run.region(block, x * 2, w), w);
    auto loss = h.pow(2).sum();
    loss.backward({}, true);
    auto gradient = torch::autograd::grad({loss}, {x}, {}, true, true)[0];
    gradient.pow(2).sum().backward({}, true);
    return loss;
  });
}

TEST_P(RegionInputs, NestedRegions) {
  expect_same_stored([](Trial& run) {
    auto x = run.input({8, 8}), w = run.param({8, 8}), mask = run.input({8, 8});
    const auto options = run.options();
    const bool recorded = run.recorded();
    const auto inner = [=](const Tensor& h) {
      const auto masked = [w](const Tensor& in, const Tensor& m) { return (in.mm(w) * m).tanh(); };
      return recorded ? refrain::checkpoint(options, masked, h, mask) : masked(h, mask);
    };
    for (int i = 0; i < 2; ++i) x = run.region([=](const Tensor& h) { return inner(inner(h.sin())).exp(); }, x);
    return x.sum();
  });
  EXPECT_EQ(store_.stored, reruns() ? 2 : 3) << "the two outer inputs, and with the tape the mask";
}

TEST_P(RegionInputs, ViewsSlicesAndExpandedTensors) {
  expect_same_stored([](Trial& run) {
    auto w = run.param({8, 8});
    auto h = run.region(block, run.input({8, 8}).t(), w);
    auto parts = (h * 2).chunk(2, 1);
    const auto product = [](const Tensor& a, const Tensor& b) { return (a * b).exp(); };
    auto y = run.region(product, parts[0], parts[1]);
    y = y + run.region(product, (w.sum(0, true) * 0.1).expand({8, 8}).slice(1, 0, 8, 2), y);
    return y.sum();
  });
}

TEST_P(RegionInputs, OtherDtypesEmptyUndefinedAndNestedInContainers) {
  expect_same_stored([](Trial& run) {
    auto table = run.param({10, 8}), w = run.param({8, 8});
    auto x = (torch::arange(6) * 3).remainder(10);
    auto mask = torch::arange(6).remainder(2).to(torch::kBool);
    const auto pick = [table](const Tensor& index, std::optional<Tensor> keep, const std::vector<Tensor>& more) {
      auto y = torch::embedding(table, index);
      if (keep) y = y.masked_fill(keep->unsqueeze(1), 0.5);
      return more.at(0).defined() ? y : y.mm(more.at(1)).exp() + more.at(2).sum();
    };
    const std::vector<Tensor> more{Tensor(), (w * 2), torch::zeros({0, 8})};
    return run.region(pick, x, std::optional<Tensor>(mask), more).sum() +
           run.region(pick, x.to(torch::kInt), std::optional<Tensor>(), more).sum();
  });
}

TEST_P(RegionInputs, OneInputOfSeveralRegionsIsStoredOnce) {
  const auto counts = expect_same_stored([](Trial& run) {
    auto x = run.input({8, 8}), w = run.param({8, 8});
    auto mask = run.input({8, 8}).gt(0).to(torch::kFloat);
    for (int i = 0; i < 3; ++i)
      x = run.region([w](const Tensor& h, const Tensor& m) { return (h.mm(w) * m).tanh(); }, x, mask);
    return x.sum();
  });
  EXPECT_EQ(store_.stored, 4) << "three activations and a mask";
  EXPECT_EQ(counts.leaf_copies, 0);
}

TEST_P(RegionInputs, TheSameTensorTwiceAmongTheArguments) {
  expect_same_stored([](Trial& run) {
    auto x = run.param({8, 8}) * 2;
    return run.region([](const Tensor& a, const Tensor& b) { return (a * b.t()).exp(); }, x, x).sum();
  });
  EXPECT_EQ(store_.stored, 1);
}

TEST_P(RegionInputs, MovedInAndOverwrittenByTheFunction) {
  const Program program = [](Trial& run) {
    auto w = run.param({8, 8});
    auto x = run.input({8, 8}).mm(w);
    x = run.region([w](Tensor h) { return (h + 1).mul_(w).exp(); }, std::move(x));
    return x.sum();
  };
  expect_same_stored(program);
}

TEST_P(RegionInputs, SomebodyElseHoldsTheTensor) {
  Tensor held;
  expect_same_stored([&](Trial& run) {
    auto w = run.param({8, 8});
    held = run.input({8, 8}).mm(w);
    auto loss = run.region(block, held, w).sum();
    loss.backward({}, true);
    return loss;
  });
  held.reset();
  EXPECT_EQ(store_.stored, 1);
  EXPECT_EQ(store_.fetched, 0) << "it is in memory";
}

TEST_P(RegionInputs, ParametersAndCapturesAreNotStored) {
  const ActivationCheckpointing activations(to_cpu());
  auto w = torch::randn({8, 8}).requires_grad_(), captured = torch::randn({8, 8});
  auto y = refrain::checkpoint(
      activations.options(options()),
      [captured](const Tensor& a, const Tensor& b) { return a.mm(b).mul(captured).exp(); }, w, w.t());
  EXPECT_EQ(store_.stored, 0);
  y.sum().backward();
  EXPECT_TRUE(w.grad().defined());
}

TEST_P(RegionInputs, StrictComparesTheOperatorsOfBothCalls) {
  if (!reruns()) return;
  const ActivationCheckpointing activations(to_cpu());
  refrain_test::expect_same(
      [](Trial& run) {
        auto x = run.input({8, 8}), w = run.param({8, 8});
        for (int i = 0; i < 2; ++i) x = run.region(block, x, w);
        return x.sum();
      },
      activations.options(options().determinism_check(DeterminismCheck::kStrict)));
}

TEST_P(RegionInputs, AGradientInsideTheFunction) {
  expect_same_stored([](Trial& run) {
    auto x = run.input({8, 8}), w = run.param({8, 8});
    auto h = run.region(block, x, w);
    return run
        .region(
            [](const Tensor& in) {
              auto at = in.detach().requires_grad_();
              auto inner = torch::autograd::grad({(at * at).exp().sum()}, {at})[0];
              return (in * inner).tanh();
            },
            h)
        .sum();
  });
}

// The region names the store; what it is written from may change before it is written.
TEST_P(RegionInputs, OnADiskAndOverwrittenMeanwhile) {
  const refrain::OffloadStore disk(refrain::OffloadOptions().store(refrain::OffloadTo::kDisk).min_bytes(0));
  refrain_test::expect_same(
      [&](Trial& run) {
        auto w = run.param({64, 64}), x = run.input({64, 64}) / 8;
        const auto fn = [w](const Tensor& h) { return (h + w).tanh(); };
        for (int i = 0; i < 3; ++i) {
          auto y = run.region(fn, x);
          if (run.options().recompute_mode() == RecomputeMode::kReplayOperators) x.detach().zero_();
          x = y * 0.5;
        }
        return x.sum();
      },
      options().offload(disk).offload_to_cpu(true));
  EXPECT_EQ(disk.stats().values, 3);
  EXPECT_EQ(disk.stats().fetches, 3);
  EXPECT_EQ(store_.stored, 0);
}

// What backward needs is in the store, so that nobody need copy it.
TEST_F(TapeTest, AStoredInputThatIsOverwrittenLaterIsNotCopied) {
  OutsideStore store;
  refrain::tape::set_offload_store({std::shared_ptr<void>(), &store});
  const ActivationCheckpointing activations(to_cpu());
  const auto counts = expect_same(
      [](Trial& run) {
        auto w = run.param({8, 8}), x = run.input({8, 8});
        auto y = run.region([w](const Tensor& h) { return (h + w).exp(); }, x);
        MemoryScope memory;
        x.zero_();
        EXPECT_EQ(memory.allocations(), 0);
        x.data().fill_(7);
        return y.sum();
      },
      activations.options());
  EXPECT_EQ(counts.leaf_copies, 0);
  EXPECT_EQ(store.stored, 1);
  EXPECT_EQ(store.fetched, 1);
  EXPECT_EQ(store.live, 0);
  refrain::reset_offload_store();
}

TEST_P(RegionInputs, ARerunRefusesAnInputThatWasOverwritten) {
  if (!reruns()) return;
  const ActivationCheckpointing activations(to_cpu());
  const auto message = refusal<CheckpointError>(
      [](Trial& run) {
        auto w = run.param({8, 8}), x = run.input({8, 8});
        auto y = run.region([w](const Tensor& h) { return (h + w).exp(); }, x);
        x.zero_();
        return y.sum();
      },
      activations.options(options()));
  EXPECT_TRUE(has(message, "its input tensor 0 (Float[8, 8]) was changed since forward")) << message;
}

// Between two regions it is written past the version counter: the second region's input is another.
TEST_P(RegionInputs, AWriteThatNoVersionCounterShowsMakesAnotherInput) {
  expect_same_stored([](Trial& run) {
    auto w = run.param({8, 8}), x = run.input({8, 8});
    const auto fn = [w](const Tensor& h) { return (h + w).exp(); };
    auto y = run.region(fn, x.clone());
    auto shared = x.clone();
    y = y + run.region(fn, shared);
    shared.data().fill_(2);
    y = y + run.region(fn, shared);
    if (run.options().recompute_mode() == RecomputeMode::kReplayOperators) shared.reset();
    return y.sum();
  });
}

// Found by random programs: nothing had read it yet, so nothing looked.
TEST_P(RegionInputs, APointerWrittenThroughBeforeTheInputIsReadMakesAnotherInput) {
  if (options().recompute_mode() == RecomputeMode::kRerunFunction)
    return;  // whose function would write again to what is alive
  for (const auto source : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction})
    expect_same_stored([source](Trial& run) {
      auto w = run.param({8, 8});
      const auto fn = [&run, source, w](const Tensor& h) {
        auto* bytes = h.data_ptr<float>();
        for (int i = 0; i < 64; ++i) bytes[i] = bytes[i] / 2 + 1;
        const auto inner = [w](const Tensor& t) { return t.mm(w).exp() * t; };
        return run.region_with(CheckpointOptions().recompute_mode(source), inner, h);
      };
      return run.region(fn, w.sin() / 8).sum();
    });
}

TEST_P(RegionInputs, AFullStoreFailsTheCallAndLeavesNothing) {
  const ActivationCheckpointing activations(to_cpu());
  auto w = torch::randn({8, 8}).requires_grad_();
  auto x = torch::randn({8, 8}).mm(w);
  store_.fails_to_store = true;
  const auto message =
      message_of<std::runtime_error>([&] { refrain::checkpoint(activations.options(options()), block, x, w); });
  EXPECT_EQ(message, "the store is full");
  store_.fails_to_store = false;
  refrain::checkpoint(activations.options(options()), block, x, w).sum().backward();
  EXPECT_TRUE(w.grad().defined());
}

TEST_P(RegionInputs, AStoreThatCannotReadFailsBackwardAndTheNextOneWorks) {
  const ActivationCheckpointing activations(to_cpu());
  auto w = torch::randn({8, 8}).requires_grad_();
  auto loss = refrain::checkpoint(activations.options(options()), block, torch::ones({8, 8}).mm(w), w).sum();
  store_.fails_to_fetch = true;
  EXPECT_EQ(message_of<std::runtime_error>([&] { loss.backward({}, true); }), "the store cannot read");
  flush_engine();
  EXPECT_FALSE(w.grad().defined());
  store_.fails_to_fetch = false;
  loss.backward();
  EXPECT_TRUE(w.grad().defined());
}

TEST_P(RegionInputs, WithGradientsOffNothingIsStored) {
  const ActivationCheckpointing activations(to_cpu());
  torch::NoGradGuard no_grad;
  refrain::checkpoint(activations.options(options()), block, torch::ones({8, 8}), torch::ones({8, 8}));
  EXPECT_EQ(store_.stored, 0);
}

TEST_P(RegionInputs, TheSettingMayDieBeforeBackward) {
  auto w = torch::randn({8, 8}).requires_grad_();
  Tensor loss;
  {
    const ActivationCheckpointing activations(packed(1));
    loss = refrain::checkpoint(activations.options(options()), block, torch::ones({8, 8}).mm(w), w).sum();
  }
  loss.backward();
  EXPECT_TRUE(w.grad().defined());
}

// --- bytes ----------------------------------------------------------------------------------------------------------

constexpr int64_t kInputBytes = 64 * 64 * 4;

/// Bytes over those before, after a forward of `n` regions, with its result in hand.
int64_t kept_after_forward(const CheckpointOptions& options, int n) {
  const auto w = (torch::randn({64, 64}) / 8).requires_grad_();
  auto x = torch::randn({64, 64});
  MemoryScope memory;
  for (int i = 0; i < n; ++i)
    x = refrain::checkpoint(
        options, [](const Tensor& h, const Tensor& v) { return h.mm(v).tanh(); }, x, w);
  const auto kept = memory.current();
  x.sum().backward();
  return kept;
}

TEST_P(RegionInputs, NoInputStaysInMemory) {
  const auto in_memory = kept_after_forward(options(), 5);
  const ActivationCheckpointing activations(to_cpu());
  const auto stored = kept_after_forward(activations.options(options()), 5);
  // the first input was there before: letting go of it shows as bytes less than before
  EXPECT_EQ(in_memory - stored, 5 * kInputBytes);
}

TEST_P(RegionInputs, AnArenaIsAllocatedOnce) {
  const ActivationCheckpointing activations(packed(5));
  {
    MemoryScope memory;
    kept_after_forward(activations.options(options()), 5);
    EXPECT_EQ(memory.current(), 5 * kInputBytes);
  }
  for (int step = 0; step < 3; ++step) {
    MemoryScope memory;
    kept_after_forward(activations.options(options()), 5);
    EXPECT_EQ(memory.current(), 0);
  }
  const auto arenas = activations.report().arenas;
  ASSERT_EQ(arenas.size(), 1U);
  EXPECT_EQ(arenas[0].slot_bytes, kInputBytes);
  EXPECT_EQ(arenas[0].slots, 5);
  EXPECT_EQ(arenas[0].in_use, 0);
  EXPECT_EQ(arenas[0].most_used, 5);
}

TEST_P(RegionInputs, SlotsComeBackWithoutABackward) {
  const ActivationCheckpointing activations(packed(2));
  const auto w = torch::randn({8, 8}).requires_grad_();
  for (int step = 0; step < 4; ++step) {
    auto x = torch::randn({8, 8});
    for (int i = 0; i < 2; ++i) x = refrain::checkpoint(activations.options(options()), block, x, w);
    EXPECT_EQ(activations.report().arenas.at(0).in_use, 2);
    x.reset();
    EXPECT_EQ(activations.report().arenas.at(0).in_use, 0);
  }
  EXPECT_EQ(activations.report().arenas.at(0).slots, 2);
}

TEST_P(RegionInputs, AFullArenaGrowsAndSaysSo) {
  ActivationCheckpointing activations(packed(2));
  kept_after_forward(activations.options(options()), 5);
  auto arena = activations.report().arenas.at(0);
  EXPECT_EQ(arena.slots, 6);
  EXPECT_EQ(arena.most_used, 5);
  EXPECT_EQ(activations.report().text(), "arena of 6 slots of 16.0 KiB: 0 in use, 5 at most\n");
  activations.reset_report();
  EXPECT_EQ(activations.report().arenas.at(0).most_used, 0);
}

TEST_P(RegionInputs, ASizeHasItsOwnArena) {
  const ActivationCheckpointing activations(packed(3));
  for (const int64_t rows : {8, 16, 8}) {
    auto w = torch::randn({8, 8}).requires_grad_();
    refrain::checkpoint(activations.options(options()), block, torch::ones({rows, 8}).mm(w), w).sum().backward();
  }
  const auto arenas = activations.report().arenas;
  ASSERT_EQ(arenas.size(), 2U);
  EXPECT_EQ(arenas[0].slot_bytes, 8 * 8 * 4);
  EXPECT_EQ(arenas[1].slot_bytes, 16 * 8 * 4);
}

TEST_P(RegionInputs, WhatARegionWithoutAStoreHeldGoesToo) {
  const ActivationCheckpointing activations(to_cpu());
  const auto w = torch::randn({64, 64}).requires_grad_();
  const auto product = [](const Tensor& h, const Tensor& v) { return h.mm(v).sum(); };
  MemoryScope memory;
  auto x = torch::randn({64, 64});
  auto loss = refrain::checkpoint(CheckpointOptions(), product, x, w);
  loss = loss + refrain::checkpoint(activations.options(options()), product, x, w);
  x.reset();
  EXPECT_LT(memory.current(), kInputBytes);
  loss.backward();
}

// Its operators would keep theirs, and so on: truncated backpropagation through time must not grow.
TEST_F(TapeTest, ADoneRegionLetsGoOfTheOperatorsBehindAStoredResult) {
  const ActivationCheckpointing activations(packed(2));
  const auto w = torch::randn({8, 8}).requires_grad_();
  const auto step = [&](const Tensor& h) { return refrain::checkpoint(activations.options(), block, h, w); };
  auto first = step(torch::randn({8, 8}));
  const auto ops = refrain::tape_stats().live_ops;
  auto second = step(first.detach());
  first.sum().backward();
  EXPECT_EQ(refrain::tape_stats().live_ops, ops);
  second.sum().backward();
}

// --- report ---------------------------------------------------------------------------------------------------------

TEST_P(RegionInputs, TheProfileCountsCallsTimeAndBytesByScope) {
  ActivationCheckpointing activations(packed(2).profile(true));
  const auto w = torch::randn({64, 64}).requires_grad_();
  for (int step = 0; step < 2; ++step) {
    auto x = torch::randn({64, 64});
    for (const char* layer : {"first", "second"}) {
      const ModuleScope scope(layer);
      x = refrain::checkpoint(activations.options(options()), block, x, w);
    }
    x.sum().backward();
  }
  const auto report = activations.report();
  ASSERT_EQ(report.regions.size(), 2U);
  for (const auto& region : report.regions) {
    EXPECT_EQ(region.calls, 2);
    EXPECT_EQ(region.recomputes, 2);
    EXPECT_EQ(region.input_bytes, 2 * kInputBytes);
    EXPECT_EQ(region.kept_bytes, 2 * kInputBytes) << "a slot is on the device too";
    EXPECT_GT(region.forward_ms, 0);
    EXPECT_GT(region.recompute_ms, 0);
  }
  EXPECT_EQ(report.regions[0].scope, "first");
  EXPECT_EQ(report.regions[1].scope, "second");

  const auto json = nlohmann::json::parse(report.json());
  EXPECT_EQ(json["regions"][1]["scope"], "second");
  EXPECT_EQ(json["regions"][1]["kept_bytes"], 2 * kInputBytes);
  EXPECT_EQ(json["arenas"][0]["most_used"], 2);
  const auto text = report.text();
  EXPECT_TRUE(has(text, "first        2")) << text;
  EXPECT_TRUE(has(text, "all          4")) << text;
  EXPECT_TRUE(has(text, "64.0 KiB")) << text;

  activations.reset_report();
  EXPECT_TRUE(activations.report().regions.empty());
}

TEST_P(RegionInputs, TheProfileSaysWhatLeftTheDevice) {
  const ActivationCheckpointing activations(to_cpu().profile(true));
  kept_after_forward(activations.options(options()), 3);
  auto region = activations.report().regions.at(0);
  EXPECT_EQ(region.input_bytes, 3 * kInputBytes);
  EXPECT_EQ(region.kept_bytes, 0);

  const ActivationCheckpointing none(ActivationCheckpointingOptions().profile(true));
  kept_after_forward(none.options(options()), 3);
  region = none.report().regions.at(0);
  EXPECT_EQ(region.input_bytes, 3 * kInputBytes);
  EXPECT_EQ(region.kept_bytes, 3 * kInputBytes);
}

TEST(ActivationCheckpointingOptionsTest, WhatCannotWorkIsRefused) {
  auto message = message_of<InvalidArgument>([] { ActivationCheckpointing activations(packed(0)); });
  EXPECT_NE(message.find("number_checkpoints 0, expected"), std::string::npos) << message;
  message = message_of<InvalidArgument>(
      [] { ActivationCheckpointing activations(ActivationCheckpointingOptions().partition_activations(true)); });
  EXPECT_NE(message.find("without a process group"), std::string::npos) << message;
}

TEST(ActivationReportText, NothingToSay) { EXPECT_EQ(refrain::ActivationReport().text(), "no region was profiled\n"); }

// --- wrappers -------------------------------------------------------------------------------------------------------

TEST_P(RegionInputs, AWrapperOffloadsToCpu) {
  using torch::nn::Linear;
  refrain::nn::Checkpoint<torch::nn::Sequential> wrapped(Linear(8, 32), torch::nn::GELU(), Linear(32, 8));
  wrapped->checkpoint_options(options());
  const auto gradients = [&] {
    wrapped->zero_grad();
    wrapped->forward(torch::ones({4, 8})).pow(2).sum().backward();
    std::string all;
    for (const auto& p : wrapped->parameters()) all += bytes_of(p.grad());
    return all;
  };
  const auto kept = gradients();
  EXPECT_EQ(store_.stored, 0);
  wrapped->offload_to_cpu(true);
  EXPECT_EQ(gradients(), kept);
  EXPECT_EQ(store_.stored, 1);
  wrapped->offload_to_cpu(false);
  EXPECT_EQ(gradients(), kept);
  EXPECT_EQ(store_.stored, 1);
}

TEST_P(RegionInputs, AMarkOffloadsToCpu) {
  torch::nn::Sequential net(torch::nn::Linear(8, 8), torch::nn::Linear(8, 8));
  refrain::apply_checkpointing(net, refrain::is_module<torch::nn::Linear>(), options().offload_to_cpu(true));
  refrain::call(net, torch::ones({4, 8})).sum().backward();
  EXPECT_EQ(store_.stored, 2);
}

}  // namespace
}  // namespace refrain_test
