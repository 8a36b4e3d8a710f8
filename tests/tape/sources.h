#pragma once

#include <ATen/autocast_mode.h>

#include <optional>
#include <set>
#include <string>

#include "tests/tape/support.h"

/// For tests of what both sources promise. A program of these tests may be run again in backward: its regions take what
/// they need as arguments or capture it by value, and only what outlives `execute` by reference.
namespace refrain_test {

using refrain::CheckpointError;
using refrain::CheckpointOptions;
using refrain::DeterminismCheck;
using refrain::InvalidArgument;
using refrain::RecomputeMode;

class BothSources : public TapeTest, public ::testing::WithParamInterface<RecomputeMode> {
 protected:
  static bool reruns() { return GetParam() == RecomputeMode::kRerunFunction; }
  static CheckpointOptions options() { return CheckpointOptions().recompute_mode(GetParam()); }
  static Counts expect_same(const Program& program) { return refrain_test::expect_same(program, options()); }
  static void expect_same(const CheckpointOptions& options, const Program& program) {
    refrain_test::expect_same(program, options);
  }
  /// `program` fails in backward (or before) with `Error`; returns its message.
  template <typename Error>
  static std::string refusal(const Program& program, const CheckpointOptions& options = BothSources::options()) {
    const auto message = message_of<Error>([&] { execute(program, true, options); });
    flush_engine();
    return message;
  }
  static bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
};

inline std::string source_name(const ::testing::TestParamInfo<RecomputeMode>& info) {
  return info.param == RecomputeMode::kReplayOperators ? "Replay" : "Rerun";
}

/// For each of `suite`'s tests: with the recompute mode kReplayOperators and with kRerunFunction.
#define REFRAIN_BOTH_SOURCES(suite) \
  INSTANTIATE_TEST_SUITE_P(         \
      Sources, suite, ::testing::Values(RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction), source_name)

/// CPU autocast to bfloat16, as a Python `with torch.autocast("cpu")`.
class Autocast {
 public:
  explicit Autocast(bool cache = true) : cache_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_cache_enabled(cache);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_cache_enabled(cache_);
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool cache_;
};

/// A function of double tensors to a tensor, the same every time it is called.
using Differentiable = std::function<Tensor(const Tensors&)>;

/// Central differences of the scalar function `fn` by every element of `inputs`, which must be double.
inline Tensors numeric_gradients(const std::function<double(const Tensors&)>& fn, const Tensors& inputs) {
  constexpr double kStep = 1e-5;
  Tensors gradients;
  for (const auto& input : inputs) {
    auto gradient = torch::empty_like(input);
    auto* x = input.data_ptr<double>();
    for (int64_t i = 0; i < input.numel(); ++i) {
      const double before = x[i];
      x[i] = before + kStep;
      const double above = fn(inputs);
      x[i] = before - kStep;
      const double below = fn(inputs);
      x[i] = before;
      gradient.data_ptr<double>()[i] = (above - below) / (2 * kStep);
    }
    gradients.push_back(gradient);
  }
  return gradients;
}

inline void expect_close(const Tensors& numeric, const Tensors& analytic, const char* what) {
  for (size_t i = 0; i < numeric.size(); ++i)
    EXPECT_TRUE(at::allclose(numeric[i], analytic[i].detach(), 1e-5, 1e-6))
        << what << " by input " << i << "\nnumeric\n"
        << numeric[i] << "\nanalytic\n"
        << analytic[i];
}

/// Compares first and second derivatives of sum(fn * weights) with differences, as torch.autograd.gradcheck and
/// gradgradcheck do. `inputs`: contiguous doubles of few elements.
inline void check_gradients(const Differentiable& fn, const Tensors& inputs) {
  Tensors leaves, directions;
  for (const auto& input : inputs) {
    leaves.push_back(input.detach().clone().requires_grad_());
    directions.push_back(torch::sin(torch::arange(input.numel(), torch::kDouble) + 1).view(input.sizes()));
  }
  const auto loss = [&](const Tensors& at) {
    const auto y = fn(at);
    return (y * torch::cos(torch::arange(y.numel(), torch::kDouble)).view(y.sizes())).sum();
  };
  const auto along = [&](const Tensors& at) {
    const auto first = torch::autograd::grad({loss(at)}, at, {}, true, /*create_graph=*/true);
    auto sum = torch::zeros({}, torch::kDouble);
    for (size_t i = 0; i < at.size(); ++i) sum = sum + (first[i] * directions[i]).sum();
    return sum;
  };
  expect_close(numeric_gradients([&](const Tensors& at) { return loss(at).item<double>(); }, leaves),
               torch::autograd::grad({loss(leaves)}, leaves), "first derivative");
  expect_close(numeric_gradients([&](const Tensors& at) { return along(at).item<double>(); }, leaves),
               torch::autograd::grad({along(leaves)}, leaves), "second derivative");
}

}  // namespace refrain_test
