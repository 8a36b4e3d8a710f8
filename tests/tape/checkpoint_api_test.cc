// `refrain::checkpoint` takes anything that can be called, with anything, and returns exactly what the call returns;
// the function is called once.
#include <array>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <variant>

#include "tests/tape/callables.h"
#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using refrain::checkpoint;
using refrain::CheckpointOptions;
using Arguments = TapeTest;
using Results = TapeTest;
using Callables = TapeTest;
using Once = TapeTest;
using UserCode = TapeTest;

// ---- Callables --------------------------------------------------------------------------------------------------

TEST_F(Callables, FunctionsLambdasAndFunctors) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Layer layer{run.param({4, 4})};
    std::function<Tensor(Tensor)> wrapped = [](Tensor t) { return t.exp().cos(); };
    Tensor sum = run.region(free_function, x, 0.5) + run.region(&free_function, x, 2) + run.region(&Layer::twice, x);
    sum = sum + run.region(layer, x) + run.region(std::as_const(layer), x) + run.region(Layer{layer.w}, x);
    sum = sum + run.region(wrapped, x) + run.region([n = 3](Tensor t) mutable { return t.exp() * ++n; }, x);
    auto generic = [](const auto& t, auto... scales) { return (t.exp() * ... * scales).sin(); };
    return (sum + run.region(generic, x, 1, 2.0, 3.0F)).sum();
  });
}

TEST_F(Callables, MemberFunctions) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Layer layer{run.param({4, 4})};
    const Layer& constant = layer;
    auto shared = std::make_shared<Layer>(layer);
    auto unique = std::make_unique<Layer>(layer);
    Tensor sum = run.region(&Layer::apply, layer, x) + run.region(&Layer::apply, &layer, x);
    sum = sum + run.region(&Layer::apply_const, constant, x) + run.region(&Layer::apply, std::ref(layer), x);
    return (sum + run.region(&Layer::apply, shared, x) + run.region(&Layer::apply_const, unique, x)).sum();
  });
}

TEST_F(Callables, Modules) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Block block;
    torch::nn::Linear linear(4, 4);
    torch::nn::Sequential sequential(torch::nn::Linear(4, 4), torch::nn::ReLU(), torch::nn::Dropout(0.5));
    auto shared = std::make_shared<BlockImpl>();
    std::shared_ptr<torch::nn::LinearImpl> inner = linear.ptr();
    torch::nn::AnyModule any(torch::nn::Tanh{});
    Tensor sum = run.region(block, x) + run.region(linear, x) + run.region(sequential, x).sin();
    sum = sum + run.region(shared, x) + run.region(*shared, x) + run.region(inner, x).exp();
    sum = sum + run.region(&BlockImpl::forward_scaled, block, x, 0.5);
    sum = sum + run.region(&BlockImpl::forward_scaled, shared, x, 2.0);
    sum = sum + run.region([&] { return any.forward(x.exp()); });
    sum.sum().backward();
    EXPECT_EQ(block->calls, 2);
    EXPECT_EQ(shared->calls, 3);
    for (const auto& p : block->parameters()) run.note("block", p.grad());
    for (const auto& p : sequential->parameters()) run.note("sequential", p.grad());
    for (const auto& p : shared->parameters()) run.note("shared", p.grad());
    for (const auto& p : linear->parameters()) run.note("linear", p.grad());
    return Tensor();
  });
}

TEST_F(Callables, OptionsFirst) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  checkpoint(CheckpointOptions(), free_function, x, 1.0).sum().backward();
  checkpoint(CheckpointOptions().preserve_rng_state(false), [&] { return x.exp().sin(); }).sum().backward();
  const CheckpointOptions options;
  checkpoint(options, [&] { return x.exp().sin(); }).sum().backward();
  EXPECT_FALSE(CheckpointOptions().preserve_rng_state(false).preserve_rng_state());
  EXPECT_TRUE(options.preserve_rng_state());
  EXPECT_GT(refrain::tape_stats().replayed_ops, 0);
}

// ---- Arguments --------------------------------------------------------------------------------------------------

struct Batch {
  Tensor image;
  std::optional<Tensor> mask;
  std::map<std::string, Tensors> extra;
  std::string name;
  int scale = 1;
};

Tensor use_batch(const Batch& b) {
  Tensor y = b.image.exp() * b.scale;
  if (b.mask) y = y * *b.mask;
  for (const auto& [key, list] : b.extra) {
    for (const auto& t : list) y = (y + t).sin();
  }
  return y;
}

TEST_F(Arguments, StructsContainersAndOptionals) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4}), w = run.param({4});
    Batch batch{x, w, {{"a", {x * 2, w}}, {"b", {}}}, "batch", 3};
    Tensor sum = run.region(use_batch, batch);
    batch.mask.reset();
    sum = sum + run.region(use_batch, batch);
    sum = sum + run.region([](const Tensors& list) { return at::stack(list).exp().sin().sum(0); }, Tensors{x, w, x});
    sum = sum + run.region(
                    [](const std::tuple<Tensor, int, Tensor>& t) {
                      return (std::get<0>(t).exp() * std::get<1>(t) * std::get<2>(t)).sin();
                    },
                    std::tuple(x, 2, w));
    sum = sum + run.region([](at::TensorList list) { return list[0].exp() * list[1].exp(); }, Tensors{x, w});
    sum = sum + run.region([](const std::array<Tensor, 2>& a) { return a[0].exp() * a[1]; }, std::array{x, w});
    return sum.sum();
  });
}

TEST_F(Arguments, UndefinedTensorsAndNulls) {
  expect_same([](Trial& run) {
    Tensor x = run.param({2, 4}), w = run.param({3, 4});
    const auto fn = [](const Tensor& a, const Tensor& b, const Tensor& bias, std::optional<Tensor> scale, void* p) {
      EXPECT_FALSE(bias.defined());
      EXPECT_EQ(p, nullptr);
      Tensor y = at::linear(a.exp(), b, bias);
      return scale ? y * *scale : y.sin();
    };
    return run.region(fn, x, w, Tensor(), std::nullopt, nullptr).sum();
  });
}

TEST_F(Arguments, IndexWithOptionalLists) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4, 4});
    return run.region(
        [&](const Tensor& rows) {
          using namespace torch::indexing;
          Tensor a = x.exp().index({Slice(), rows, Slice(0, 2)});
          Tensor b = x.sin().index({None, 0, Ellipsis, rows});
          Tensor c = at::index(x * 2, {std::optional<Tensor>(), std::optional<Tensor>(rows)});
          return a.sin().sum() + b.cos().sum() + c.sin().sum();
        },
        torch::tensor({0, 2}));
  });
}

TEST_F(Arguments, ReferencesReachTheFunction) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  int count = 0;
  Tensor out;
  const auto fn = [&x](int& n, Tensor& result) {
    ++n;
    result = x.exp();
    return result.sin();
  };
  checkpoint(fn, count, out).sum().backward();
  EXPECT_EQ(count, 1);
  EXPECT_TRUE(out.requires_grad());
  out.reset();
}

struct MoveOnly {
  explicit MoveOnly(Tensor t) : value(std::make_unique<Tensor>(std::move(t))) {}
  std::unique_ptr<Tensor> value;
};

struct CountsCopies {
  CountsCopies(int& n) : copies(&n) {}
  CountsCopies(const CountsCopies& other) : copies(other.copies) { ++*copies; }
  int* copies;
};

TEST_F(Arguments, ForwardedUntouched) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  MoveOnly given(x);
  Tensor y = checkpoint([](MoveOnly m) { return m.value->exp().sin(); }, std::move(given));
  EXPECT_EQ(given.value, nullptr);
  y.sum().backward();
  int copies = 0;
  CountsCopies counted(copies);
  checkpoint([](const CountsCopies&, CountsCopies&) {}, counted, counted);
  EXPECT_EQ(copies, 0);
  checkpoint([p = std::make_unique<int>(3), &x] { return x.exp() * *p; }).sum().backward();
  Tensor moved = x.exp();
  checkpoint([](Tensor&& t) { return std::move(t).sin(); }, std::move(moved)).sum().backward();
}

// ---- Results ----------------------------------------------------------------------------------------------------

struct Output {
  Tensor value;
  std::vector<std::optional<Tensor>> parts;
  int64_t size;
};

TEST_F(Results, TypeIsPreserved) {
  Tensor x = torch::ones({4});
  int n = 0;
  const int constant = 0;
  static_assert(std::is_same_v<decltype(checkpoint([&]() -> int& { return n; })), int&>);
  static_assert(std::is_same_v<decltype(checkpoint([&]() -> const int& { return constant; })), const int&>);
  static_assert(std::is_same_v<decltype(checkpoint([&]() -> int&& { return std::move(n); })), int&&>);
  static_assert(std::is_same_v<decltype(checkpoint([] {})), void>);
  static_assert(std::is_same_v<decltype(checkpoint([&] { return x; })), Tensor>);
  static_assert(std::is_same_v<decltype(checkpoint([&]() -> Tensor& { return x; })), Tensor&>);
  static_assert(std::is_same_v<decltype(checkpoint(CheckpointOptions(), [] { return 1.5F; })), float>);
  EXPECT_EQ(&checkpoint([&]() -> int& { return n; }), &n);
  EXPECT_EQ(&checkpoint([&]() -> Tensor& { return x; }), &x);
  EXPECT_EQ(checkpoint([] { return std::string("text"); }), "text");
}

TEST_F(Results, AnyShapeOfResult) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Output o = run.region([&] { return Output{x.exp().sin(), {x.cos(), std::nullopt, Tensor()}, x.size(0)}; });
    auto [a, b] = run.region([&] { return std::pair(x.exp().cos(), x.sin().exp()); });
    auto map = run.region([&] { return std::map<std::string, Tensor>{{"k", x.exp().tanh()}}; });
    auto list = run.region([&] { return x.exp().unbind(); });
    auto variant = run.region([&]() -> std::variant<int, Tensor> { return x.exp().sin(); });
    auto unique = run.region([&] { return std::make_unique<Tensor>(x.exp().sin()); });
    auto nothing = run.region([&]() -> std::optional<Tensor> { return std::nullopt; });
    EXPECT_FALSE(nothing);
    EXPECT_FALSE(o.parts[2]->defined());
    Tensor sum = o.value * *o.parts[0] + a * b + map.at("k") + std::get<Tensor>(variant) * *unique;
    return sum.sum() + (list[1] * list[2]).sum() * o.size;
  });
}

TEST_F(Results, Void) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4}), y;
    run.region([&] { y = x.exp().sin(); });
    return y.sum();
  });
}

TEST_F(Results, InputReturnedAndViewsOfInputs) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor same = run.region([](const Tensor& t) { return t; }, x);
    EXPECT_TRUE(same.is_same(x));
    Tensor view = run.region([&] { return x.t()[1]; });
    Tensor detached = run.region([&] { return x.exp().detach(); });
    EXPECT_FALSE(detached.requires_grad());
    return (view.sin() * same[0] * detached[2]).sum();
  });
}

// ---- Called once ------------------------------------------------------------------------------------------------

TEST_F(Once, CalledOnceAndPrintsOnce) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  int calls = 0;
  ::testing::internal::CaptureStdout();
  Tensor loss = checkpoint([&] {
                  ++calls;
                  std::cout << "hello" << std::endl;
                  return x.exp().sin();
                }).sum();
  loss.backward({}, /*retain_graph=*/true);
  loss.backward();
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "hello\n");
  EXPECT_EQ(calls, 1);
  EXPECT_GT(refrain::tape_stats().replayed_ops, 0);
}

TEST_F(Once, CapturesMayDieBeforeBackward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4}), loss;
    {
      auto scale = std::make_unique<double>(0.5);
      Tensor local = run.input({4});
      loss = run.region([&] { return (x.exp() * *scale + local).sin(); }).sum();
    }
    return loss;
  });
}

TEST_F(Once, DataDependentControlFlow) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    Tensor counter = torch::zeros({});
    return run
        .region([&] {
          Tensor t = x;
          while (t.abs().sum().item<float>() < 50) {
            t = t.exp() * 1.5;
            counter.add_(1);
            if (counter.item<float>() > 4) break;
          }
          return t.sin() * counter;
        })
        .sum();
  });
}

// ---- User code inside -------------------------------------------------------------------------------------------

struct CustomExp : torch::autograd::Function<CustomExp> {
  static inline int forwards = 0;
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& x, double scale) {
    ++forwards;
    Tensor y = x.exp() * scale;
    ctx->save_for_backward({x, y});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["tensor"] = x.cos().detach();
    ctx->mark_non_differentiable({});
    return {y, x * scale};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    auto saved = ctx->get_saved_variables();
    Tensor extra = ctx->saved_data["tensor"].toTensor();
    return {grads[0] * saved[1] + grads[1] * ctx->saved_data["scale"].toDouble() + extra * saved[0], Tensor()};
  }
};

TEST_F(UserCode, CustomAutogradFunction) {
  CustomExp::forwards = 0;
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return run
        .region([&] {
          auto out = CustomExp::apply(x.sin() * 2, 0.5);
          return (out[0] * out[1]).sin();
        })
        .sum();
  });
  EXPECT_EQ(CustomExp::forwards, 2) << "one for each run, none in backward";
}

TEST_F(UserCode, CustomOperators) {
  reset_ticks();
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor a = tick_saving(x.exp(), 0);
          Tensor noise = unary("refrain_test::noise", a);
          Tensor more = unary("refrain_test::noise", noise);
          return (a * noise).sin() * more;
        })
        .sum();
  });
  EXPECT_LE(ticks[0], 3);
}

TEST_F(UserCode, TensorsCapturedByHooks) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return run
        .region([&] {
          Tensor y = x.exp(), mask = y.detach().cos();
          y.register_hook([mask](const Tensor& g) { return g * mask; });
          return y.sin();
        })
        .sum();
  });
}

TEST_F(UserCode, ComplexConjAndNegViews) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region([&] {
          Tensor z = at::complex(x.exp(), w.sin());
          Tensor c = z.conj(), n = at::imag(c);  // `n` has the neg bit
          Tensor p = (c * z).mm(z.t().conj()) + at::real(z * c) * 2;
          Tensor lazy = c.detach();
          return at::real(p).sin() + (n * x).cos() + (n * n).exp() * 0.1 + at::abs(lazy * z) +
                 at::view_as_real(z).sum(-1);
        })
        .sum();
  });
}

TEST_F(UserCode, ConjAndNegLeaves) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor outside = at::complex(run.input({4, 4}), run.input({4, 4})).conj();
    Tensor negative = at::imag(outside);
    EXPECT_TRUE(outside.is_conj() && negative.is_neg());
    return run
        .region(
            [&] { return at::abs(at::complex(x.exp(), x) * outside).sin() + ((x.exp() + negative).sin() * negative); })
        .sum();
  });
}

TEST_F(UserCode, ConjWrittenInPlace) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor z = at::complex(x.detach(), x.detach() * 2), c = z.conj();
          c.mul_(c10::complex<float>(0, 1));
          Tensor n = at::imag(c);
          n.add_(0.5);
          return (x * at::real(z)).sin() + (x * n).cos();
        })
        .sum();
  });
}

TEST_F(UserCode, ViewsExpandedAndOverlapping) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), b = run.param({1, 4});
    return run.region([&] {
      Tensor y = x.exp();
      Tensor windows = y.view(-1).unfold(0, 4, 2);
      Tensor e = b.exp().expand({4, 4}), diagonal = y.diagonal(), s = y.as_strided({2, 2}, {1, 2}, 3);
      return windows.sin().sum() + (e * y).sin().sum() + (diagonal * diagonal).sum() + s.cos().sum() * y.flip(0).sum();
    });
  });
}

TEST_F(UserCode, SeveralDtypes) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region([&] {
          Tensor sum = torch::zeros({4, 4});
          for (auto dtype : {torch::kDouble, torch::kHalf, torch::kBFloat16, torch::kFloat}) {
            sum = sum + (x.to(dtype).exp() * 2).sin().to(torch::kFloat);
          }
          Tensor mask = x.gt(0), index = x.argmax(1, true);
          return at::where(mask, sum.exp(), sum.sin()) + x.gather(1, index).exp() + sum.masked_fill(mask, 1.0).cos();
        })
        .sum();
  });
}

TEST_F(UserCode, OrdinaryLayers) {
  expect_same([](Trial& run) {
    Tensor x = run.param({2, 4, 8, 8}), k = run.param({4, 4, 3, 3}), table = run.param({9, 8}), g = run.param({8});
    Tensor ids = torch::tensor({{1, 2, 2}, {0, 8, 5}});
    return run.region([&] {
      Tensor y = at::max_pool2d(at::relu(at::conv2d(x.sin(), k, {}, 1, 1)), 2);
      y = at::avg_pool2d(at::upsample_nearest2d(y, c10::IntArrayRef{8, 8}), 2).sin();
      Tensor e = at::layer_norm(at::embedding(table, ids), {8}, g, {}, 1e-5);
      Tensor q = e.unsqueeze(1);
      Tensor a = at::scaled_dot_product_attention(q, q * 2, q.sin(), {}, 0.0, true);
      Tensor loss = at::cross_entropy_loss(a.reshape({6, 8}), torch::arange(6)) + at::gelu(e).sum();
      return loss + y.sum() + at::group_norm(x, 2).exp().mean() + at::log_softmax(e, -1).sum();
    });
  });
}

TEST_F(UserCode, SeveralBackwardThreadsOverOneParameter) {
  Tensor w = torch::eye(8).mul_(0.3).requires_grad_();
  std::vector<Tensor> got(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      Tensor x = torch::full({4, 8}, 0.1 * static_cast<double>(i + 1));
      Tensor loss = checkpoint([&] { return x.mm(w).exp().mm(w).sin(); }).sum();
      got[i] = torch::autograd::grad({loss}, {w})[0];
    });
  }
  for (auto& t : threads) t.join();
  for (size_t i = 0; i < 4; ++i) {
    Tensor x = torch::full({4, 8}, 0.1 * static_cast<double>(i + 1));
    expect_bit_equal(torch::autograd::grad({x.mm(w).exp().mm(w).sin().sum()}, {w})[0], got[i]);
  }
}

}  // namespace
}  // namespace refrain_test
