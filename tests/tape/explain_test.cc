// `saved_tensors`: each row says truly what is kept and why, and the sums are the allocator's.
#include <torch/library.h>

#include <stdexcept>

#include "tests/tape/support.h"

namespace refrain_test {

TORCH_LIBRARY_FRAGMENT(refrain_test, m) { m.def("explain_effect(Tensor x) -> Tensor"); }

TORCH_LIBRARY_IMPL(refrain_test, CPU, m) {
  m.impl("explain_effect", [](const Tensor& x) { return at::mul(x, 0.5); });
}

namespace {

using refrain::checkpoint;
using refrain::CheckpointOptions;
using refrain::CheckpointPolicy;
using refrain::saved_tensors;
using refrain::SavedReport;
using Explain = TapeTest;
using Lines = std::vector<std::string>;

Tensor param(at::IntArrayRef sizes) { return torch::randn(sizes, torch::requires_grad()); }

/// "region|operator|[sizes]|bytes|kept|why", with "+" after the bytes where an earlier row counted them.
Lines lines(const SavedReport& report) {
  Lines list;
  for (const auto& t : report.tensors) {
    std::ostringstream line;
    line << t.region << '|' << t.op << '|' << at::IntArrayRef(t.sizes) << '|' << t.bytes << (t.shared ? "+|" : "|")
         << (t.referenced_elsewhere ? "anyway"
             : t.kept               ? "yes"
                                    : "no")
         << (t.referenced_elsewhere && !t.kept ? " not kept" : "") << '|' << t.reason;
    list.push_back(line.str());
  }
  return list;
}

/// Checks that what is alive after `fn`, results left out, is what the report says, then returns the report.
template <typename F>
SavedReport expect_bytes_of_allocator(F&& fn) {
  fn();  // caches, and the first cast of constants
  refrain::MemoryScope memory;
  int64_t alive = 0;
  {
    const Tensor result = fn();
    alive = memory.current() - static_cast<int64_t>(result.storage().nbytes());
  }
  EXPECT_EQ(memory.current(), 0) << "the function itself keeps something";
  auto report = saved_tensors(fn);
  EXPECT_EQ(report.kept_bytes, alive) << report.text();
  EXPECT_EQ(memory.current(), 0) << "the report keeps something";
  return report;
}

TEST_F(Explain, EveryRowOfASmallRegion) {
  const Tensor x = torch::randn({4, 8}), w = param({8, 8}), b = param({8}), s = param({4, 8});
  const auto report = saved_tensors(CheckpointOptions(), [&] { return torch::linear(x, w, b).relu().mul(s).sum(); });
  EXPECT_EQ(lines(report), (Lines{
                               "0||[4, 8]|128|anyway|read from outside (input)",
                               "0|aten::relu|[4, 8]|128|no|recomputed: 2 operators",
                               "0||[4, 8]|128|anyway|read from outside (parameter)",
                               "0|aten::relu|[4, 8]|128+|no|recomputed: 2 operators",
                           }));
  EXPECT_EQ(report.kept_bytes, 0);
  EXPECT_EQ(report.referenced_elsewhere_bytes, 256);
  EXPECT_EQ(report.recomputed_bytes, 128);
  EXPECT_EQ(report.regions, 1);
  EXPECT_TRUE(report.hints.empty());
  for (const auto& tensor : report.tensors) EXPECT_EQ(tensor.dtype, torch::kFloat);
}

TEST_F(Explain, OutsideEveryRegion) {
  const Tensor w = param({8, 8});
  const auto report = expect_bytes_of_allocator([&] { return w.t().exp().sin().sum(); });
  EXPECT_EQ(lines(report), (Lines{
                               "-1|ExpBackward0|[8, 8]|256|yes|saved outside every region (result)",
                               "-1|ExpBackward0|[8, 8]|256+|yes|saved outside every region (result)",
                           }));
  const auto product = saved_tensors([&] { return w.t().mm(w).sum(); });
  EXPECT_EQ(lines(product), (Lines{
                                "-1||[8, 8]|256|anyway|saved outside every region (parameter)",
                                "-1||[8, 8]|256+|anyway|saved outside every region (parameter)",
                            }));
  EXPECT_EQ(product.referenced_elsewhere_bytes, 256);
  EXPECT_EQ(report.regions, 0);
}

TEST_F(Explain, AResultThatIsSaved) {
  const Tensor w = param({8, 8});
  EXPECT_EQ(lines(saved_tensors([&] { return w.exp(); })),
            (Lines{"-1|ExpBackward0|[8, 8]|256|anyway|saved outside every region (result)"}));
  EXPECT_EQ(lines(saved_tensors(CheckpointOptions(), [&] { return w.exp(); })),
            (Lines{"0|aten::exp|[8, 8]|256|anyway not kept|"
                   "in memory while the caller holds it, else recomputed: 1 operator"}));
}

TEST_F(Explain, ASmallViewKeepsItsWholeStorage) {
  const Tensor w = param({2});
  const auto report = expect_bytes_of_allocator([&] { return (torch::ones({64}).narrow(0, 3, 2) * w).sum(); });
  ASSERT_EQ(report.tensors.size(), 1U);
  EXPECT_EQ(report.tensors[0].bytes, 256);
  EXPECT_EQ(report.tensors[0].sizes, (std::vector<int64_t>{2}));
}

TEST_F(Explain, PoliciesAndMarks) {
  const Tensor x = param({8, 8}), w = torch::randn({8, 8});
  const auto options = CheckpointOptions().policy(refrain::save_matmuls());
  const auto report = expect_bytes_of_allocator([&] {
    return checkpoint(
        options, [&] { return refrain::set_policy(x.mm(w).sin().exp(), CheckpointPolicy::kMustSave).cos().sum(); });
  });
  EXPECT_EQ(lines(report), (Lines{
                               "0||[8, 8]|256|anyway|read from outside (input)",
                               "0|aten::mm|[8, 8]|256|yes|kept by policy",
                               "0|aten::exp|[8, 8]|256|yes|kept by name or mark",
                               "0|aten::exp|[8, 8]|256+|yes|kept by name or mark",
                           }));
  EXPECT_EQ(report.recomputed_bytes, 0);
  EXPECT_EQ(report.hints, (Lines{"region 0 recomputes nothing: all it computed for backward is kept; a larger piece "
                                 "or another policy saves memory"}));
}

TEST_F(Explain, AMarkThatNothingReads) {
  const Tensor x = param({8, 8});
  const auto report = expect_bytes_of_allocator([&] {
    return checkpoint([&] {
      refrain::set_policy(x.sin(), CheckpointPolicy::kMustSave);
      return x.exp().sin().sum();
    });
  });
  EXPECT_EQ(report.tensors.back().reason, "kept by name or mark, and read by nothing");
}

TEST_F(Explain, BetweenRegions) {
  const Tensor w = param({8, 8});
  const auto block = [&](const Tensor& x) { return x.sin().cos().mm(w); };
  const auto report = expect_bytes_of_allocator([&] { return checkpoint(block, checkpoint(block, w.exp())).sum(); });
  EXPECT_EQ(lines(report), (Lines{
                               "-1|ExpBackward0|[8, 8]|256|yes|saved outside every region (result)",
                               "0|ExpBackward0|[8, 8]|256+|yes|read from outside (result)",
                               "0|aten::sin|[8, 8]|256|no|recomputed: 1 operator",
                               "0||[8, 8]|256|anyway|read from outside (parameter)",
                               "0|aten::cos|[8, 8]|256|no|recomputed: 2 operators",
                               "1|aten::mm|[8, 8]|256|yes|crosses into another region",
                               "1|aten::sin|[8, 8]|256|no|recomputed: 1 operator",
                               "1||[8, 8]|256+|anyway|read from outside (parameter)",
                               "1|aten::cos|[8, 8]|256|no|recomputed: 2 operators",
                           }));
  EXPECT_EQ(report.regions, 2);
  EXPECT_TRUE(report.hints.empty());
}

TEST_F(Explain, ALeafThatOnlyTheGraphHolds) {
  const auto run = [] {
    Tensor x = torch::ones({8, 8}).requires_grad_();
    return x.sin().exp().sum();
  };
  EXPECT_EQ(expect_bytes_of_allocator(run).kept_bytes, 512);
  EXPECT_EQ(expect_bytes_of_allocator([&] { return checkpoint(run); }).kept_bytes, 256);
}

TEST_F(Explain, NestedRegions) {
  const Tensor w = param({8, 8});
  const auto report = expect_bytes_of_allocator([&] {
    return checkpoint([&] {
      Tensor h = w.sin();
      h = checkpoint([&] { return h.exp().cos(); });
      h = checkpoint([&] { return h.mm(w); });
      return h.exp().sum();
    });
  });
  EXPECT_EQ(lines(report), (Lines{
                               "0||[8, 8]|256|anyway|read from outside (parameter)",
                               "1|aten::exp|[8, 8]|256|no|recomputed: 2 operators",
                               "1|aten::exp|[8, 8]|256+|no|recomputed: 2 operators",
                               "2||[8, 8]|256+|anyway|read from outside (parameter)",
                               "2|aten::cos|[8, 8]|256|no|recomputed: 3 operators",
                               "0|aten::exp|[8, 8]|256|no|recomputed: 5 operators",
                           }));
  EXPECT_EQ(report.hints,
            (Lines{"region 2 recomputes nothing: all it saved was read from outside; checkpoint a larger piece"}));
}

TEST_F(Explain, RegionsThatSaveNoMemory) {
  torch::nn::Linear layer(8, 8);
  const Tensor x = torch::randn({4, 8});
  auto report = saved_tensors(CheckpointOptions(), layer, x);
  EXPECT_EQ(report.hints,
            (Lines{"region 0 recomputes nothing: all it saved was read from outside; checkpoint a larger piece"}));
  report = saved_tensors(CheckpointOptions(), [&] { return checkpoint([&] { return x + layer->bias; }); });
  EXPECT_EQ(report.hints,
            (Lines{"region 0 recomputes nothing: autograd saved nothing in it; call the function directly"}))
      << "once for both";
  EXPECT_EQ(report.regions, 2);
}

TEST_F(Explain, HeldForTheReplayAlone) {
  const Tensor w = param({8, 8});
  const auto report = expect_bytes_of_allocator([&] {
    return checkpoint([&](const Tensor& x) { return (x + w).sin().sum(); }, torch::ones({8, 8}));
  });
  EXPECT_EQ(lines(report), (Lines{
                               "0|aten::add|[8, 8]|256|no|recomputed: 1 operator",
                               "0||[8, 8]|256|yes|read from outside, for the replay of aten::add",
                           }));
}

TEST_F(Explain, OperatorsWithEffects) {
  refrain::register_side_effect_op("refrain_test::explain_effect");
  const auto effect =
      c10::Dispatcher::singleton().findSchemaOrThrow("refrain_test::explain_effect", "").typed<Tensor(const Tensor&)>();
  const Tensor w = param({8, 8});
  const auto report = expect_bytes_of_allocator([&] {
    return checkpoint([&] {
      Tensor noted;
      {
        torch::NoGradGuard no_grad;
        noted = effect.call(w);
      }
      return (noted * w).sum();
    });
  });
  EXPECT_EQ(lines(report), (Lines{"0|refrain_test::explain_effect|[8, 8]|256|yes|result of an operator with effects"}));
}

TEST_F(Explain, OverwrittenLeaves) {
  const Tensor w = param({8, 8});
  const auto report = expect_bytes_of_allocator([&] {
    Tensor x = torch::ones({8, 8});
    const Tensor y = checkpoint([&] { return (x + w).sin().sum(); });
    x.zero_();
    return y;
  });
  EXPECT_EQ(report.tensors.back().reason, "copied before it was overwritten, for the replay of aten::add");
  EXPECT_EQ(report.kept_bytes, 256);
}

TEST_F(Explain, TensorsWithoutAPlainStorage) {
  const Tensor d = param({8, 4});
  const Tensor sparse = torch::eye(8).to_sparse();
  const std::string bytes = std::to_string(8 * 4 + 2 * 8 * 8);  // values, indices
  const auto product = [&](const Tensor& s) { return torch::mm(s, d.sin()).sum(); };

  auto report = saved_tensors(CheckpointOptions(), product, sparse);
  ASSERT_EQ(lines(report).back(), "0||[8, 8]|" + bytes + "|anyway|no plain storage to replay into (Sparse)");
  EXPECT_EQ(report.kept_bytes, 0);

  report = saved_tensors([&] { return product(sparse.clone()); });
  ASSERT_EQ(lines(report).back(), "-1||[8, 8]|" + bytes + "|yes|saved outside every region (no gradient)");
  report = expect_bytes_of_allocator([&] { return checkpoint(product, torch::eye(8).to_sparse()); });
  EXPECT_EQ(std::to_string(report.kept_bytes), bytes);
}

TEST_F(Explain, LayersUnderEveryKindOfCheckpoint) {
  torch::nn::Sequential net(torch::nn::Conv2d(3, 4, 3), torch::nn::BatchNorm2d(4),
                            torch::nn::ReLU(torch::nn::ReLUOptions(true)), torch::nn::Dropout(0.5),
                            torch::nn::Flatten(), torch::nn::Linear(784, 8), torch::nn::GELU());
  const auto run = [&] { return net->forward(torch::ones({2, 3, 16, 16})).sum(); };
  const auto plain = expect_bytes_of_allocator(run);
  const auto replayed = expect_bytes_of_allocator([&] { return checkpoint(run); });
  const auto selective = expect_bytes_of_allocator(
      [&] { return checkpoint(CheckpointOptions().policy(refrain::save_compute_intensive()), run); });
  expect_bytes_of_allocator([&] { return checkpoint([&] { return checkpoint(run); }); });
  expect_bytes_of_allocator([&] {
    refrain::NoCheckpointGuard none;
    return checkpoint(run);
  });
  ASSERT_FALSE(replayed.tensors.empty());
  EXPECT_EQ(replayed.tensors.back().reason, "state of the generator, for the replay of aten::bernoulli_");
  EXPECT_LT(replayed.kept_bytes, selective.kept_bytes);
  EXPECT_LT(selective.kept_bytes, plain.kept_bytes);
  EXPECT_EQ(plain.recomputed_bytes, 0);
}

TEST_F(Explain, ObservingChangesNoBit) {
  const auto program = [](Trial& run) {
    Tensor w = run.param({8, 8});
    const auto step = [&] {
      Tensor y = (run.region([&] { return torch::dropout(w.sin().mm(w), 0.5, true); }) * w).sum();
      y.backward({}, true);  // inside, so that what the observer kept is read
      return y * w.grad().sum();
    };
    if (!run.recorded()) return step();
    Tensor loss;
    (void)saved_tensors([&] { loss = step(); });
    return loss;
  };
  expect_same(program);
}

TEST_F(Explain, OfARerunTheInputsAreSeen) {
  const Tensor w = param({8, 8});
  const auto options = CheckpointOptions().recompute_mode(refrain::RecomputeMode::kRerunFunction);
  Tensor loss;
  const auto report = saved_tensors([&] {
    loss = checkpoint(
        options, [w](const Tensor& x) { return (x.sin() * w).sum(); }, w.exp());
  });
  EXPECT_EQ(lines(report), (Lines{
                               "-1|ExpBackward0|[8, 8]|256|yes|saved outside every region (result)",
                               "-1|ExpBackward0|[8, 8]|256+|yes|saved outside every region (result)",
                           }));
  EXPECT_EQ(report.regions, 0);
  loss.backward();
  const Tensor gradient = w.grad().clone();
  w.mutable_grad().reset();
  (w.exp().sin() * w).sum().backward();
  expect_bit_equal(w.grad(), gradient);
}

TEST_F(Explain, AChangedTensorIsRefusedAsEver) {
  const Tensor w = param({8});
  const auto program = [&] {
    Tensor x = torch::ones({8});
    Tensor y = (x * w).sum();
    x.add_(1);
    y.backward();
  };
  EXPECT_NE(message_of<c10::Error>(program).find("modified by an inplace operation"), std::string::npos);
  EXPECT_NE(message_of<c10::Error>([&] { (void)saved_tensors(program); }).find("modified by an inplace operation"),
            std::string::npos);
}

TEST_F(Explain, AnExceptionPassesAndEndsTheObserving) {
  const Tensor w = param({8});
  Tensor kept;
  EXPECT_THROW((void)saved_tensors([&] {
                 kept = checkpoint([&] { return w.sin().exp(); });
                 throw std::logic_error("no");
               }),
               std::logic_error);
  kept.sum().backward();
  EXPECT_TRUE(w.grad().defined());
  EXPECT_EQ(saved_tensors([&] { return w.exp(); }).tensors.size(), 1U);
}

TEST_F(Explain, WhatNeedsNoGradientSavesNothing) {
  const Tensor w = param({8});
  torch::NoGradGuard no_grad;
  const auto report = saved_tensors(CheckpointOptions(), [&] { return w.exp(); });
  EXPECT_TRUE(report.tensors.empty());
  EXPECT_TRUE(report.hints.empty());
  EXPECT_EQ(report.regions, 0);
}

TEST_F(Explain, ReportsNestAndCarryAnyResult) {
  const Tensor w = param({8});
  Lines inner;
  const auto report = saved_tensors([&] {
    inner = lines(saved_tensors([&] { return std::vector<Tensor>{w.exp(), w.sin()}; }));
    return std::make_unique<Tensor>(w.cos());
  });
  EXPECT_EQ(inner.size(), 2U);
  EXPECT_EQ(report.tensors.size(), 1U);
  EXPECT_TRUE(saved_tensors([] {}).tensors.empty());
}

TEST_F(Explain, InsideARegionItIsRefused) {
  const auto message = message_of<refrain::InvalidArgument>([] { checkpoint([] { (void)saved_tensors([] {}); }); });
  EXPECT_NE(message.find("inside a checkpoint region"), std::string::npos);
}

TEST_F(Explain, TheTextHasEveryRowTheSumsAndTheInsights) {
  torch::nn::Linear layer(8, 8);
  const Tensor x = torch::randn({4, 8});
  testing::internal::CaptureStdout();
  refrain::print_saved(CheckpointOptions(), layer, x);
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            "region  made by  tensor        bytes  kept    why\n"
            "     0  -        Float [4, 8]  128 B  anyway  read from outside (input)\n"
            "0 B kept for backward alone, 128 B alive anyway, 0 B to recompute. Regions: 1. Each storage counts once.\n"
            "region 0 recomputes nothing: all it saved was read from outside; checkpoint a larger piece\n");
}

}  // namespace
}  // namespace refrain_test
