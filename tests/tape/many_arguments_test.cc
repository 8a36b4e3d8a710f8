#include <torch/library.h>

#include <ctime>

#include "tests/budget/cap_support.h"

/// Operators with more arguments, and more tensors among them, than models have. LibTorch itself takes 64 arguments.
namespace refrain_test {
namespace {

constexpr int kTail = 6;

// Numbers that lie 32 arguments before a list, where a word of bits for lists would take one for the other.
bool is_number(int i) { return i == 2 || i == 3 || i == 7 || i == 26 || i == 27 || i == 31; }

// `n` arguments: tensors and some numbers, then a list, a list with gaps, a tensor that is written, two constants, and a list of which nothing is defined.
std::string schema(int n) {
  std::string text = fmt::format("wide{}(", n);
  for (int i = 0; i < n - kTail; ++i) text += fmt::format("{} t{}, ", is_number(i) ? "int" : "Tensor", i);
  return text + "Tensor[] list, Tensor?[] gaps, Tensor(a!) out, int[] shift, float scale, Tensor?[] nothing) -> Tensor";
}

// Each argument counts with its position; `out` is read before it is written.
void wide(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t n = op.schema().arguments().size();
  auto args = torch::jit::pop(*stack, n);
  auto out = args[n - 4].toTensor();
  auto sum = at::mul(out, args[n - 2].toDouble());
  for (size_t i = 0; i < n - kTail; ++i)
    sum =
        args[i].isInt() ? at::add(sum, args[i].toInt()) : at::add(sum, args[i].toTensor(), static_cast<double>(i + 1));
  for (const auto& each : args[n - 6].toTensorVector()) sum = at::add(at::mul(sum, 1.5), each);
  for (const auto& each : args[n - 5].toListRef())
    sum = each.isTensor() && each.toTensor().defined() ? at::add(at::mul(sum, 0.75), each.toTensor())
                                                       : at::add(sum, 0.125);
  for (const auto& each : args[n - 1].toListRef())
    sum = each.isTensor() && each.toTensor().defined() ? at::add(sum, 1000) : at::add(sum, 0.0625);
  for (const auto each : args[n - 3].toIntVector()) sum = at::add(sum, each);
  out.add_(sum, 0.5);
  torch::jit::push(*stack, sum);
}

TORCH_LIBRARY(refrain_wide, m) {
  for (const int n : {40, 64}) m.def(schema(n).c_str());
}

TORCH_LIBRARY_IMPL(refrain_wide, CPU, m) {
  for (const int n : {40, 64})
    m.impl(fmt::format("wide{}", n).c_str(), torch::CppFunction::makeFromBoxedFunction<&wide>());
}

Tensor call_wide(int n, const Tensors& tensors, const Tensors& list, const std::vector<std::optional<Tensor>>& gaps,
                 const Tensor& out) {
  const torch::NoGradGuard no_grad;
  torch::jit::Stack stack;
  for (int i = 0; i < n - kTail; ++i) {
    if (is_number(i))
      stack.emplace_back(int64_t{i});
    else
      stack.emplace_back(tensors.at(static_cast<size_t>(i)));
  }
  stack.emplace_back(list);
  stack.emplace_back(c10::List<std::optional<Tensor>>(gaps));
  stack.emplace_back(out);
  stack.emplace_back(std::vector<int64_t>{2, 3});
  stack.emplace_back(1.25);
  stack.emplace_back(c10::List<std::optional<Tensor>>({std::nullopt, std::nullopt}));
  c10::Dispatcher::singleton().findSchemaOrThrow(fmt::format("refrain_wide::wide{}", n).c_str(), "").callBoxed(&stack);
  return stack.at(0).toTensor();
}

Tensor wide_program(Trial& run, int n) {
  const auto x = run.param({8}), a = run.input({8}), b = run.input({8});
  return run.region(
      [&](const Tensor& y) {
        Tensors tensors;
        for (int i = 0; i < n - kTail; ++i) tensors.push_back(a * (0.5 + i));
        const auto out = b.exp();
        const auto sum = call_wide(n, tensors, {a.sin(), b.cos(), a + b}, {b.tanh(), std::nullopt, a.exp()}, out);
        return (y * sum).sum() + (y * out).sum();
      },
      x);
}

using ManyArguments = TapeTest;

TEST_F(ManyArguments, FortyAndSixtyFourInARegion) {
  for (const int n : {40, 64}) {
    SCOPED_TRACE(n);
    const auto counts = expect_same([&](Trial& run) { return wide_program(run, n); });
    EXPECT_GT(counts.replayed, n - kTail - 6) << "the operator was not replayed: this tests nothing";
  }
}

TEST_F(ManyArguments, FortyAndSixtyFourUnderACap) {
  refrain::install_memory_tracking();
  for (const int n : {40, 64}) {
    SCOPED_TRACE(n);
    const auto run = [&] {
      torch::manual_seed(7);
      Trial trial(false);
      return std::pair(wide_program(trial, n), std::move(trial));
    };
    auto [loss, plain] = run();
    loss.backward();
    const auto want = plain.outcome();
    auto [capped_loss, capped] = [&] {
      const refrain::MemoryCap cap(kNoLimit, every_byte());
      const Torture torture;
      auto made = run();
      made.first.backward();
      EXPECT_GT(cap.stats().recomputes, n - kTail - 6);
      return made;
    }();
    EXPECT_TRUE(want == capped.outcome());
    expect_bit_equal(loss, capped_loss);
  }
}

TEST_F(ManyArguments, MoreResultsThanSixteenBitsCount) {
  const auto x = torch::randn({}), w = torch::randn({}).requires_grad_();
  const Tensors many(70'000, x);
  const auto run = [&](auto&& call) {
    w.mutable_grad() = Tensor();
    call([&] {
      const auto made = at::_foreach_add(many, at::arange(1, 70'001, torch::kFloat).unbind());
      return made[69'999] * w + made[3] * w;
    }).backward();
    return w.grad().clone();
  };
  const auto want = run([](const auto& fn) { return fn(); });
  expect_bit_equal(want, run([](const auto& fn) { return refrain::checkpoint(fn); }));
}

}  // namespace
}  // namespace refrain_test
