// Kernels by raw pointer, in regions, caps and budgets.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "refrain/refrain.h"
#include "tests/budget/torture.h"

namespace refrain_test {
namespace {

using namespace refrain;
using torch::Tensor;

// y = 2 x + state, and state += 1: as compiled code does it, without an operator.
Tensor kernel(const Tensor& x, Tensor& state) {
  const OpaqueScope opaque({x}, {state});
  Tensor y = at::empty(x.sizes(), x.options().requires_grad(false));
  const auto* from = x.const_data_ptr<float>();
  auto *to = y.mutable_data_ptr<float>(), *s = state.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = 2 * from[i] + s[i]++;
  return y;
}

struct Doubled : torch::autograd::Function<Doubled> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x, Tensor state) { return kernel(x, state); }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list g) {
    Tensor zero = at::zeros_like(g[0]);
    return {kernel(g[0], zero), Tensor()};
  }
};

Tensor block(const Tensor& x, Tensor& state) {
  const Tensor moved = (x + state).tanh();  // read by an operator before the kernel writes it
  return (Doubled::apply(x.sin(), state) * moved).cos();
}

struct Result {
  std::vector<Tensor> tensors;
  void expect_equal(const Result& other) const {
    ASSERT_EQ(tensors.size(), other.tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(torch::equal(tensors[i], other.tensors[i])) << i;
  }
};

Result train(const std::function<Tensor(const Tensor&, Tensor&)>& run_block, int steps = 3) {
  torch::manual_seed(1);
  Tensor w = torch::randn({64, 64}).requires_grad_(), state = torch::zeros({64, 64});
  Result result;
  for (int step = 0; step < steps; ++step) {
    Tensor h = w * 1.0;
    for (int i = 0; i < 4; ++i) h = run_block(h, state) + h;
    w.mutable_grad() = Tensor();
    h.pow(2).mean().backward();
    result.tensors.push_back(h.detach().clone());
    result.tensors.push_back(w.grad().clone());
  }
  result.tensors.push_back(state);
  return result;
}

TEST(Opaque, InRegionsItsWritesAreSeen) {
  const auto baseline = train(block);
  reset_tape_counters();
  const auto ours = train([](const Tensor& x, Tensor& s) { return checkpoint([&] { return block(x, s); }); });
  ours.expect_equal(baseline);
  EXPECT_GT(tape_stats().leaf_copies, 0);
  EXPECT_GT(tape_stats().replayed_ops, 0);
}

// Compiled code may have the pointer from before, so that nothing but the scope tells of the write.
TEST(Opaque, AWriteThroughAnOldPointerIsAnnounced) {
  const auto x = torch::randn({8}).requires_grad_();
  auto state = torch::full({8}, 2.0F);
  auto* const pointer = state.mutable_data_ptr<float>();
  const Tensor y = checkpoint([&] { return (x * (state * 3)).sin(); });
  {
    const OpaqueScope opaque({}, {state});
    for (int i = 0; i < 8; ++i) pointer[i] = 7;
  }
  y.sum().backward();
  EXPECT_TRUE(torch::equal(x.grad(), ((x * 6).cos() * 6).detach()));
}

TEST(Opaque, OperatorsInsideAreNotRecorded) {
  Tensor x = torch::randn({8}).requires_grad_();
  reset_tape_counters();
  const Tensor y = checkpoint([&] {
    const OpaqueScope opaque({x});
    return x.sin().exp();
  });
  EXPECT_EQ(tape_stats().recorded_ops, 0);
  y.sum().backward();
  EXPECT_TRUE(torch::equal(x.grad(), (x.cos() * x.sin().exp()).detach()));
}

TEST(Opaque, UnderACapWhatItReadsIsResident) {
  const auto baseline = train(block);
  const auto level = memory_stats().current;
  Bytes peak = 0;
  {
    const MemoryScope memory;
    train(block);
    peak = memory.peak();
  }
  for (const double part : {1.0, 0.9, 0.8}) {
    MemoryCap cap(Budget::bytes(level + static_cast<Bytes>(part * static_cast<double>(peak))));
    train(block).expect_equal(baseline);
    if (part < 0.85) {
      EXPECT_GT(cap.stats().evictions, 0);
    }
  }
}

TEST(Opaque, UnderTorture) {
  const auto baseline = train(block);
  MemoryCap cap(Budget::bytes(memory_stats().current + 64_MiB));
  const Torture torture;
  train(block).expect_equal(baseline);
  train([](const Tensor& x, Tensor& s) { return checkpoint([&] { return block(x, s); }); }).expect_equal(baseline);
  EXPECT_GT(cap.stats().evictions, 100);
}

TEST(Opaque, InABudget) {
  const auto baseline = train(block, 5);
  MemoryBudget budget(Budget::fraction(0.5));
  train(block, 5).expect_equal(baseline);
  EXPECT_GT(budget.stats().planned_steps, 0) << budget.stats().first_mismatch;
}

TEST(Opaque, UndefinedAndSparseTensorsAreIgnored) {
  const auto sparse = torch::eye(3).to_sparse();
  MemoryCap cap(Budget::bytes(memory_stats().current + 64_MiB));
  const OpaqueScope opaque({Tensor(), sparse}, {Tensor(), sparse});
  EXPECT_EQ(sparse._nnz(), 3);
}

}  // namespace
}  // namespace refrain_test
