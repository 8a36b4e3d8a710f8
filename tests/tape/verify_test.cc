// The gradient check that users run on their own functions: it must see what differs, and leave nothing behind.
#include "refrain/verify.h"

#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::CheckpointOptions;
using refrain::verify_checkpoint;
using Verify = TapeTest;

TEST_F(Verify, ModulesWithBuffersAndRandomNumbers) {
  torch::nn::Sequential net(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Dropout(0.4),
                            torch::nn::Linear(8, 2));
  auto x = torch::randn({5, 6}).requires_grad_();
  const auto generator = bytes_of(at::detail::getDefaultCPUGenerator().get_state());
  const auto mean = bytes_of(net->named_buffers()["1.running_mean"]);
  const auto report = verify_checkpoint(net, x);
  EXPECT_TRUE(report.replay.bit_equal()) << report.text();
  EXPECT_EQ(report.plain_calls, 1);
  EXPECT_EQ(report.replay.calls, 1);
  EXPECT_EQ(report.rerun.calls, 2);
  // output, input, 6 parameters, 3 buffers, generator
  EXPECT_EQ(report.replay.tensors.size(), 12U) << report.text();
  // The second call moves the statistics again: only the buffers say so.
  EXPECT_FALSE(report.rerun.bit_equal());
  for (const auto& row : report.rerun.tensors) EXPECT_EQ(row.bit_equal, row.name.find("buffer") != 0) << row.name;
  EXPECT_EQ(bytes_of(at::detail::getDefaultCPUGenerator().get_state()), generator);
  EXPECT_EQ(bytes_of(net->named_buffers()["1.running_mean"]), mean);
  EXPECT_FALSE(x.grad().defined());
  EXPECT_FALSE(net->parameters()[0].grad().defined());
}

TEST_F(Verify, CapturedLeavesAndSeveralResults) {
  auto w = torch::randn({4, 4}).requires_grad_();
  auto x = torch::randn({3, 4});
  const auto report = verify_checkpoint(
      CheckpointOptions().policy(refrain::save_matmuls()),
      [&](const std::vector<Tensor>& list) { return std::pair(list[0].mm(w).sin(), list[0].sum()); },
      std::vector<Tensor>{x});
  EXPECT_TRUE(report.bit_equal()) << report.text();
  bool found = false;
  for (const auto& row : report.replay.tensors) found |= row.name == "gradient of captured leaf 0";
  EXPECT_TRUE(found) << report.text();
}

// LibTorch gives `sgn` a gradient without memory.
TEST_F(Verify, AGradientThatIsKnownToBeZero) {
  auto x = torch::randn({3, 4}).requires_grad_();
  x.sgn().sum().backward();
  ASSERT_TRUE(x.grad()._is_zerotensor());
  EXPECT_EQ(bytes_of(x.grad()), bytes_of(torch::zeros({3, 4})));
  const auto report = verify_checkpoint([](const Tensor& a) { return a.sgn(); }, x);
  EXPECT_TRUE(report.bit_equal()) << report.text();
}

TEST_F(Verify, AFunctionThatDoesSomethingElseTheSecondTimeIsNoticed) {
  int calls = 0;
  auto x = torch::randn({3, 4}).requires_grad_();
  const auto counts = [&](const Tensor& a) { return (a * static_cast<double>(++calls)).sin(); };
  const auto report = verify_checkpoint(counts, x);
  EXPECT_FALSE(report.replay.bit_equal());  // another call, so another factor
  EXPECT_GT(report.replay.tensors[0].max_abs, 1e-3);
  EXPECT_GT(report.replay.tensors[0].max_rel, 1e-3);
  EXPECT_FALSE(report.rerun.bit_equal());
  EXPECT_NE(report.text().find("output 0: "), std::string::npos) << report.text();
}

// Inputs overwritten by the function are put back for the next run, and for the caller.
TEST_F(Verify, InputsWrittenInPlace) {
  auto w = torch::randn({3, 4}).requires_grad_();
  auto x = torch::randn({3, 4});
  const auto before = bytes_of(x);
  const auto report = verify_checkpoint([](Tensor a, const Tensor& b) { return (a.mul_(2) * b).sin(); }, x, w);
  EXPECT_TRUE(report.replay.bit_equal()) << report.text();
  EXPECT_NE(report.rerun.error.find("was changed since"), std::string::npos) << report.text();
  EXPECT_EQ(bytes_of(x), before);
}

TEST_F(Verify, WhatOneRunThrowsIsReported) {
  auto x = torch::randn({3, 4}).requires_grad_();
  const auto fn = [](const Tensor& a) {
    if (refrain::is_recomputing()) throw std::runtime_error("not again");
    return a.sin().exp();
  };
  const auto report = verify_checkpoint(fn, x);
  EXPECT_TRUE(report.replay.bit_equal()) << report.text();
  EXPECT_EQ(report.rerun.error, "not again");
  EXPECT_NE(report.text().find("failed: not again"), std::string::npos);
}

TEST_F(Verify, WithoutAGradientThereIsNothingToCompare) {
  auto x = torch::randn({3, 4});
  EXPECT_NE(message_of<refrain::InvalidArgument>([&] {
              (void)verify_checkpoint([](const Tensor& a) { return a.sin(); }, x);
            }).find("none of the 1 tensors"),
            std::string::npos);
}

}  // namespace
}  // namespace refrain_test
