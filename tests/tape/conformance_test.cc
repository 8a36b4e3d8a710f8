// What torch.utils.checkpoint, fairscale, Megatron and others promise, and what their users complained about: each case with
// both sources, beside a plain run. docs/peers.md lists them.
#include <pthread.h>

#include <any>
#include <array>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <variant>

#include "tests/tape/callables.h"
#include "tests/tape/sources.h"
#include "tests/tape/test_ops.h"

namespace refrain_test {
namespace {

using refrain::checkpoint;
using refrain::is_checkpointing;
using refrain::is_recomputing;

class Conformance : public BothSources {};
REFRAIN_BOTH_SOURCES(Conformance);

Tensor block(const Tensor& x, const Tensor& w) { return at::gelu(x.mm(w)).mm(w).tanh(); }

// ---- Arguments --------------------------------------------------------------------------------------------------

struct Batch {
  Tensor image;
  std::optional<Tensor> mask;
  std::map<std::string, Tensors> extra;
  std::string name;
  int scale = 1;
};

template <typename Visit>
void visit_tensors(Batch& batch, const Visit& visit) {
  visit(batch.image);
  if (batch.mask) visit(*batch.mask);
  for (auto& [name, list] : batch.extra)
    for (auto& tensor : list) visit(tensor);
}

Tensor use_batch(const Batch& b) {
  Tensor y = b.image.exp() * b.scale;
  if (b.mask) y = y * *b.mask;
  for (const auto& [key, list] : b.extra)
    for (const auto& t : list) y = (y + t).sin();
  return b.name == "batch" ? y : y * 2;
}

struct Opaque {
  Tensor a;
  std::variant<int, Tensor> b;
};

TEST_P(Conformance, StructArguments) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4}), w = run.param({4});
    Batch batch{x.exp(), w, {{"a", {x * 2, w}}, {"b", {}}}, "batch", 3};
    Tensor sum = run.region(use_batch, batch) + run.region(use_batch, std::as_const(batch));
    batch.mask.reset();
    sum = sum + run.region(use_batch, std::move(batch));
    const auto opaque = [](const Opaque& o) { return (o.a.exp() * std::get<Tensor>(o.b)).sin(); };
    sum = sum + run.region(opaque, Opaque{x * 2, w});
    return sum.sum();
  });
}

TEST_P(Conformance, ContainerArguments) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4}), w = run.param({4});
    const std::map<std::string, Tensor> dict{{"x", x.exp()}, {"w", w}};
    Tensor sum = run.region([](const auto& d) { return (d.at("x") * d.at("w").exp()).sin(); }, dict);
    sum = sum + run.region([](const Tensors& list) { return at::stack(list).exp().sin().sum(0); }, Tensors{x, w, x});
    sum = sum + run.region([](at::TensorList list) { return list[0].exp() * list[1].exp(); }, Tensors{x * 2, w});
    sum = sum + run.region(
                    [](const std::tuple<Tensor, int, Tensor>& t) {
                      return (std::get<0>(t).exp() * std::get<1>(t) * std::get<2>(t)).sin();
                    },
                    std::tuple(x.sin(), 2, w));
    sum = sum + run.region([](std::pair<Tensor, double>&& p) { return p.first.exp() * p.second; }, std::pair(x, 0.5));
    sum = sum + run.region([](std::array<Tensor, 2> a) { return a[0].exp() * a[1]; }, std::array{x, w.exp()});
    const std::vector<std::map<std::string, std::optional<Tensor>>> deep{{{"a", x.cos()}, {"b", std::nullopt}}};
    sum = sum + run.region([](const auto& d) { return d[0].at("a")->exp().sin(); }, deep);
    return sum.sum();
  });
}

TEST_P(Conformance, NoneArguments) {
  expect_same([](Trial& run) {
    Tensor x = run.param({2, 4}), w = run.param({3, 4});
    const auto fn = [](const Tensor& a, const Tensor& b, const Tensor& bias, std::optional<Tensor> scale, void* p) {
      EXPECT_FALSE(bias.defined());
      EXPECT_EQ(p, nullptr);
      Tensor y = at::linear(a.exp(), b, bias);
      return scale ? (y * *scale).sin() : y.sin();
    };
    Tensor sum = run.region(fn, x, w, Tensor(), std::nullopt, nullptr).sum();
    return sum + run.region(fn, x, w, Tensor(), std::optional<Tensor>(Tensor(x.sum())), nullptr).sum();
  });
}

TEST_P(Conformance, NonTensorArguments) {
  enum class Kind { kSin, kCos };
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    const auto fn = [](const Tensor& t, const std::string& name, std::vector<int64_t> dims, double scale, bool square,
                       Kind kind, at::ScalarType dtype, const at::Scalar& shift, const char* word) {
      EXPECT_EQ(name, "a name longer than any small string optimisation");
      EXPECT_STREQ(word, "literal");
      Tensor y = t.to(dtype).sum(dims, true) * scale + shift;
      if (square) y = y * y;
      return (kind == Kind::kSin ? y.sin() : y.cos()).to(torch::kFloat);
    };
    const std::string name = "a name longer than any small string optimisation";
    return run
        .region(fn, x, name, std::vector<int64_t>{1}, 0.5, true, Kind::kCos, torch::kDouble, at::Scalar(2), "literal")
        .sum();
  });
}

// `x.sizes()` and string views point into what may be gone before backward.
TEST_P(Conformance, ArgumentsThatOnlyPoint) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y;
    {
      std::vector<int64_t> shape{2, 8}, dims{0, 1};
      std::string name(100, 'n');
      const auto fn = [](const Tensor& t, at::IntArrayRef sizes, at::OptionalIntArrayRef axes, std::string_view text) {
        EXPECT_EQ(text, std::string(100, 'n'));
        EXPECT_EQ(*axes, at::IntArrayRef({0, 1}));
        return (t.view(sizes) * 2).sin().sum(*axes).exp();
      };
      y = run.region(fn, x, at::IntArrayRef(shape), at::OptionalIntArrayRef(dims), std::string_view(name));
      shape.assign({-7, -7});
      dims.assign({-7, -7});
      name.assign(100, 'x');
    }
    return y.sum();
  });
}

TEST_P(Conformance, ReferencesReachTheFunction) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  int count = 0;
  Tensor out;
  const auto fn = [](const Tensor& t, int& n, Tensor& result) {
    ++n;
    result = t.exp();
    return result.sin();
  };
  checkpoint(options(), fn, x, count, out).sum().backward();
  EXPECT_EQ(count, 1) << "a second call counts in its own copy";
  EXPECT_TRUE(out.requires_grad());
}

TEST_P(Conformance, AFunctionWithStateOfItsOwnStartsAgainFromIt) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return run
        .region(
            [n = 1](const Tensor& t) mutable {
              const Tensor y = (t.exp() * ++n).sin();
              return y * ++n;
            },
            x)
        .sum();
  });
}

struct MoveOnly {
  explicit MoveOnly(Tensor t) : value(std::make_unique<Tensor>(std::move(t))) {}
  std::unique_ptr<Tensor> value;
};

struct Layers {
  std::vector<std::unique_ptr<double>> scales;
  Layers() { scales.push_back(std::make_unique<double>(2.0)); }
  Layers(const Layers&) = delete;
  Tensor forward(const Tensor& x) const { return (x.exp() * *scales[0]).sin(); }
};

// They cannot be kept for a second call; that is said at once.
TEST_P(Conformance, WhatCannotBeCopied) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  const auto check = [&](const char* what, const auto& call) {
    SCOPED_TRACE(what);
    if (reruns()) {
      EXPECT_TRUE(has(message_of<InvalidArgument>([&] { call(); }), "cannot be copied"));
      return;
    }
    call().sum().backward();
    expect_bit_equal(torch::autograd::grad({(x.exp() * 2).sin().sum()}, {x})[0], x.grad());
    x.mutable_grad().reset();
  };
  check("argument", [&] {
    return checkpoint(
        options(), [](MoveOnly m) { return (m.value->exp() * 2).sin(); }, MoveOnly(x));
  });
  check("capture",
        [&] { return checkpoint(options(), [p = std::make_unique<int>(2), &x] { return (x.exp() * *p).sin(); }); });
  check("container of such", [&] {
    std::vector<std::unique_ptr<double>> scales;
    scales.push_back(std::make_unique<double>(2.0));
    return checkpoint(
        options(), [&](const auto& s) { return (x.exp() * *s[0]).sin(); }, scales);
  });
  check("object", [&] {
    Layers layers;
    return checkpoint(options(), &Layers::forward, layers, x);
  });
  check("functor", [&] {
    Layers layers;
    return checkpoint(options(), layers, x);
  });
}

struct Abstract {
  virtual ~Abstract() = default;
  virtual double scale() const = 0;
};
struct Concrete : Abstract {
  double scale() const override { return 2; }
};
struct Tree : std::vector<Tree> {
  double scale = 2;
};

// Of any type; where a copy is impossible a rerun says so, and nothing fails to compile.
TEST_P(Conformance, ArgumentsOfOddTypes) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  const Tensor want = torch::autograd::grad({(x.exp() * 2).sin().sum()}, {x})[0];
  const auto pass = [&](bool copies, auto&& argument) {
    using Argument = decltype(argument);
    const auto call = [&] {
      return checkpoint(
          options(), [](const Tensor& t, const auto&) { return (t.exp() * 2).sin(); }, x,
          std::forward<Argument>(argument));
    };
    if (copies || !reruns()) {
      expect_bit_equal(want, torch::autograd::grad({call().sum()}, {x})[0]);
    } else {
      message_of<InvalidArgument>([&] { call(); });
    }
  };
  std::mutex mutex;
  std::ostringstream stream;
  Concrete concrete;
  const float array[3] = {1, 2, 3};
  torch::OrderedDict<std::string, Tensor> dict({{"x", x}});
  std::unordered_map<std::string, std::vector<std::unique_ptr<int>>> map;
  std::tuple<int, std::vector<std::unique_ptr<int>>> tuple;
  std::optional<std::vector<std::unique_ptr<int>>> optional;
  std::map<std::string, std::vector<bool>> flags{{"a", {true, false}}};
  pass(false, mutex);
  pass(false, stream);
  pass(false, static_cast<const Abstract&>(concrete));
  pass(false, map);
  pass(false, tuple);
  pass(false, std::move(optional));
  pass(true, array);
  pass(true, dict);
  pass(true, flags);
  pass(true, std::any(x));
  pass(true, at::IValue(x));
  pass(true, c10::List<Tensor>({x, x}));
  pass(true, std::filesystem::path("/a/b"));
  pass(true, Tree{{Tree(), Tree()}});
  pass(true, torch::nn::AnyModule(torch::nn::Tanh()));
  pass(true, torch::nn::ModuleList(torch::nn::Linear(2, 2)));
  pass(true, std::ref(mutex));
  pass(true, &mutex);
  pass(true, std::function<void()>());
  pass(true, std::initializer_list<int64_t>{});
}

struct Shape {
  virtual ~Shape() = default;
  virtual Tensor forward(const Tensor& x) const { return x.exp().cos(); }
};
struct Round : Shape {
  Tensor forward(const Tensor& x) const override { return x.exp().sin(); }
};

// A copy of the base class would be another function.
TEST_P(Conformance, AnObjectBehindABaseClass) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4});
    static const Round round;
    const Shape& shape = round;
    return run.region(&Shape::forward, shape, x).sum();
  };
  if (reruns()) {
    EXPECT_TRUE(has(refusal<InvalidArgument>(program), "base class"));
  } else {
    expect_same(program);
  }
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    return (run.region(&Shape::forward, Round(), x) + run.region(&Shape::forward, std::make_shared<Round>(), x)).sum();
  });
}

// ---- Callables and results --------------------------------------------------------------------------------------

TEST_P(Conformance, FunctionsFunctorsAndMembers) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Layer layer{run.param({4, 4})};
    auto shared = std::make_shared<Layer>(layer);
    std::function<Tensor(Tensor)> wrapped = [](Tensor t) { return t.exp().cos(); };
    auto generic = [](const auto& t, auto... scales) { return (t.exp() * ... * scales).sin(); };
    Tensor sum = run.region(free_function, x, 0.5) + run.region(&free_function, x, 2) + run.region(wrapped, x);
    sum = sum + run.region(layer, x) + run.region(std::as_const(layer), x) + run.region(Layer{layer.w}, x);
    sum = sum + run.region(&Layer::apply, layer, x) + run.region(&Layer::apply_const, std::as_const(layer), x);
    sum = sum + run.region(&Layer::apply, shared, x) + run.region(&Layer::apply, shared.get(), x);
    sum = (sum + run.region(generic, x, 1, 2.0, 3.0F)).sum();
    sum.backward();
    return Tensor();
  });
}

TEST_P(Conformance, ModulesHoldersAndImpls) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor loss, weight;
    {
      Block block;
      torch::nn::Linear linear(4, 4);
      torch::nn::Sequential sequential(torch::nn::Linear(4, 4), torch::nn::ReLU(), torch::nn::Dropout(0.5));
      auto shared = std::make_shared<BlockImpl>();
      std::shared_ptr<torch::nn::LinearImpl> inner = linear.ptr();
      Tensor sum = run.region(block, x) + run.region(linear, x) + run.region(sequential, x).sin();
      sum = sum + run.region(shared, x) + run.region(*shared, x) + run.region(inner, x).exp();
      sum = sum + run.region(&BlockImpl::forward_scaled, block, x, 0.5);
      sum = sum + run.region(&BlockImpl::forward_scaled, *shared, x, 2.0);
      loss = sum.sum();
      EXPECT_EQ(block->calls, 2);
      EXPECT_EQ(shared->calls, 3);
      weight = shared->linear->weight;
    }
    loss.backward();  // the modules are gone
    run.note("weight", weight.grad());
    return Tensor();
  });
}

TEST_P(Conformance, AModuleOnTheStack) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    BlockImpl block;
    run.region(block, x).sum().backward();
    run.note("weight", block.linear->weight.grad());
    return Tensor();
  });
}

struct Output {
  Tensor value;
  std::vector<std::optional<Tensor>> parts;
  int64_t size;
};

TEST_P(Conformance, AnyResult) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    const auto parts = [](const Tensor& t) { return Output{t.exp().sin(), {t.cos(), std::nullopt, Tensor()}, 4}; };
    Output o = run.region(parts, x);
    auto [a, b] = run.region([=] { return std::pair(x.exp().cos(), x.sin().exp()); });
    auto map = run.region([=] { return std::map<std::string, Tensor>{{"k", x.exp().tanh()}}; });
    auto list = run.region([=] { return x.exp().unbind(); });
    auto variant = run.region([=]() -> std::variant<int, Tensor> { return x.exp().sin(); });
    auto unique = run.region([=] { return std::make_unique<Tensor>(x.exp().sin()); });
    auto nothing = run.region([=]() -> std::optional<Tensor> { return std::nullopt; });
    EXPECT_EQ(run.region([=](int n) { return x.exp().size(0) + n; }, 3), 7);
    EXPECT_FALSE(nothing);
    EXPECT_FALSE(o.parts[2]->defined());
    Tensor same = run.region([](const Tensor& t) { return t; }, x);
    EXPECT_TRUE(same.is_same(x));
    Tensor view = run.region([=] { return x.t()[1]; });
    Tensor sum = o.value * *o.parts[0] + a * b + map.at("k") + std::get<Tensor>(variant) * *unique;
    return sum.sum() + (list[1] * list[2]).sum() * o.size + (view.sin() * same[0]).sum();
  });
}

TEST_P(Conformance, ResultTypesArePreserved) {
  const auto options = Conformance::options();
  static int n = 0;
  Tensor x = torch::ones({4});
  static_assert(std::is_same_v<decltype(checkpoint(options, []() -> int& { return n; })), int&>);
  static_assert(std::is_same_v<decltype(checkpoint(options, []() -> int&& { return std::move(n); })), int&&>);
  static_assert(std::is_same_v<decltype(checkpoint(options, [] {})), void>);
  static_assert(std::is_same_v<decltype(checkpoint(options, [&]() -> Tensor& { return x; })), Tensor&>);
  EXPECT_EQ(&checkpoint(options, []() -> int& { return n; }), &n);
  EXPECT_EQ(&checkpoint(
                options, [](Tensor& t) -> Tensor& { return t; }, x),
            &x);
  EXPECT_EQ(checkpoint(options, [] { return std::string("text"); }), "text");
  checkpoint(options, [] {});
}

// ---- Random numbers ---------------------------------------------------------------------------------------------

TEST_P(Conformance, Dropout) {
  expect_same([](Trial& run) {
    Tensor x = run.param({16, 16});
    Tensor y = run.region([](const Tensor& t) { return at::dropout(t.exp(), 0.5, true).sin(); }, x);
    Tensor z = run.region([](const Tensor& t) { return at::dropout(t.cos(), 0.3, true).sin(); }, y);
    run.note("drawn between forward and backward", torch::rand({2}));
    return z.sum();
  });
}

TEST_P(Conformance, TheGeneratorIsWhereTheUserLeftIt) {
  Trial run(true, options());
  Tensor x = run.param({8, 8});
  Tensor loss = run.region([](const Tensor& t) { return at::dropout(t.exp(), 0.5, true).sin(); }, x).sum();
  torch::manual_seed(99);
  const Tensor before = at::detail::getDefaultCPUGenerator().get_state();
  loss.backward();
  expect_bit_equal(before, at::detail::getDefaultCPUGenerator().get_state(), "state of the default generator");
}

TEST_P(Conformance, AGeneratorArgument) {
  expect_same([](Trial& run) {
    Tensor x = run.param({16, 16});
    const auto fn = [](const Tensor& t, std::optional<at::Generator> g) {
      Tensor mask = at::empty_like(t, t.options().requires_grad(false)).bernoulli_(0.5, g);
      Tensor noise = at::normal(0.0, 1.0, {16, 16}, g);
      return (t.exp() * mask).sin() * (t * noise).cos() * (t + torch::rand({16, 16}, g)).sin();
    };
    Tensor y = run.region(fn, x, std::optional(run.own_generator()));
    run.note("drawn", torch::rand({2}, run.own_generator()));
    return (y + run.region(fn, x, std::nullopt)).sum();
  });
}

// As frameworks that keep their own random states do: draw, and put back the state from before.
TEST_P(Conformance, AGeneratorForkedInside) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    Tensor y = run.region(
        [](const Tensor& t) {
          auto generator = at::detail::getDefaultCPUGenerator();
          const Tensor state = generator.get_state();
          Tensor dropped = at::dropout(t.exp(), 0.5, true).sin();
          generator.set_state(state);
          return dropped.cos();
        },
        x);
    run.note("drawn between", torch::rand({5}));
    return y.sum();
  });
}

TEST_P(Conformance, SeededInside) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8});
    return run
        .region(
            [](const Tensor& t) {
              Tensor y = at::dropout(t.exp(), 0.5, true).sin();
              torch::manual_seed(3);
              return at::dropout(y, 0.5, true).sin();
            },
            x)
        .sum();
  });
}

TEST_P(Conformance, WithoutPreservingTheRandomState) {
  const auto without = options().preserve_rng_state(false);
  Trial run(true);
  Tensor x = run.param({64, 64});
  Tensor y = checkpoint(
      without, [](const Tensor& t) { return at::dropout(t.exp(), 0.5, true).sin(); }, x);
  if (!reruns()) {
    EXPECT_TRUE(has(message_of<CheckpointError>([&] { y.sum().backward(); }), "random"));
    flush_engine();
  } else {  // fresh numbers, as with torch.utils.checkpoint
    const auto state = at::detail::getDefaultCPUGenerator().get_state();
    Tensor g = torch::autograd::grad({y.sum()}, {x})[0];
    EXPECT_NE(bytes_of(state), bytes_of(at::detail::getDefaultCPUGenerator().get_state()));
    EXPECT_NE(bytes_of(g.eq(0)), bytes_of(y.eq(0)));
  }
  const auto calm = [](const Tensor& t) { return t.exp().sin(); };
  expect_bit_equal(torch::autograd::grad({calm(x).sum()}, {x})[0],
                   torch::autograd::grad({checkpoint(without, calm, x).sum()}, {x})[0]);
}

// ---- Is it the same both times? ---------------------------------------------------------------------------------

// What the first call did decides; with kRerun another second one is an error.
TEST_P(Conformance, AFunctionThatDoesSomethingElseTheSecondTime) {
  const auto program = [](int first, int second) -> Program {
    return [=](Trial& run) {
      Tensor x = run.param({4, 4}), w = run.param({4, 4});
      auto calls = std::make_shared<int>(0);
      return run
          .region(
              [=](const Tensor& t) {
                const int what = (*calls)++ == 0 ? first : second;
                Tensor y = t.mm(w);
                if (what == 0) return y.sin().mm(w).exp();
                if (what == 1) return y.cos().mm(w).exp();                  // an operator of the same shape
                if (what == 2) return y.narrow(0, 0, 2).sin().mm(w).exp();  // other sizes
                return y.sin().sin().mm(w).exp();                           // more operators
              },
              x)
          .sum();
    };
  };
  for (const int other : {1, 2, 3}) {
    SCOPED_TRACE(other);
    for (const auto check : {DeterminismCheck::kDefault, DeterminismCheck::kStrict}) {
      const auto checked = options().determinism_check(check);
      if (!reruns()) {
        refrain_test::expect_same_as(program(0, 0), program(0, other), checked);
      } else if (other == 1 && check == DeterminismCheck::kDefault) {
        EXPECT_NO_THROW(execute(program(0, other), true, checked)) << "sizes are equal: only kStrict sees it";
      } else if (other == 3 && check == DeterminismCheck::kDefault) {
        EXPECT_NO_THROW(execute(program(0, other), true, checked)) << "stopped before the number differs";
        EXPECT_TRUE(has(refusal<CheckpointError>(program(0, other), CheckpointOptions(checked).early_stop(false)),
                        "tensors were saved"));
      } else {
        EXPECT_TRUE(has(refusal<CheckpointError>(program(0, other), checked), "did something else"));
      }
    }
  }
  if (reruns()) {
    EXPECT_NO_THROW(execute(program(0, 1), true, options().determinism_check(DeterminismCheck::kNone)));
  }
  for (const auto check : {DeterminismCheck::kDefault, DeterminismCheck::kStrict, DeterminismCheck::kNone})
    expect_same(options().determinism_check(check), program(0, 0));
}

TEST_P(Conformance, StrictNamesTheOperators) {
  if (!reruns()) GTEST_SKIP() << "the function is called once";
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    auto calls = std::make_shared<int>(0);
    return run.region([=](const Tensor& t) { return ((*calls)++ == 0 ? t.sin() : t.cos()).exp(); }, x).sum();
  };
  const auto strict = refusal<CheckpointError>(program, options().determinism_check(DeterminismCheck::kStrict));
  EXPECT_TRUE(has(strict, "aten::sin")) << strict;
  EXPECT_TRUE(has(strict, "aten::cos")) << strict;
}

TEST_P(Conformance, DebugShowsBothTraces) {
  if (!reruns()) GTEST_SKIP() << "the function is called once";
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    auto calls = std::make_shared<int>(0);
    return run.region([=](const Tensor& t) { return ((*calls)++ == 0 ? t : t.narrow(0, 0, 2)).sin().exp(); }, x).sum();
  };
  const auto text = refusal<CheckpointError>(program, options().debug(true));
  EXPECT_TRUE(has(text, "operators in forward:") && has(text, "operators in the rerun:")) << text;
  EXPECT_TRUE(has(text, "aten::sin(Float[4, 4])") && has(text, "aten::slice.Tensor(Float[4, 4])")) << text;
  EXPECT_TRUE(has(refusal<CheckpointError>(program), "debug(true)"));
  {
    refrain::DebugGuard debug(true);
    EXPECT_TRUE(has(refusal<CheckpointError>(program), "operators in forward:"));
    refrain::DebugGuard off(false);
    EXPECT_FALSE(has(refusal<CheckpointError>(program, options().debug(true)), "operators in forward:"));
  }
  EXPECT_EQ(refrain::set_debug(true), std::nullopt);
  EXPECT_TRUE(has(refusal<CheckpointError>(program), "operators in forward:"));
  EXPECT_EQ(refrain::set_debug(std::nullopt), true);
  EXPECT_FALSE(has(refusal<CheckpointError>(program), "operators in forward:"));
}

// A guard around forward only: the second call must not take that for a difference.
TEST_P(Conformance, SettingsOfForwardHoldInTheSecondCall) {
  const auto strict = options().determinism_check(DeterminismCheck::kStrict).early_stop(false);
  const Program program = [strict](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor loss;
    {
      refrain::DebugGuard debug(true);
      const auto outer = [&run, w](const Tensor& t) {
        return run.region([w](const Tensor& u) { return block(u, w); }, t.sin()).exp().sin();
      };
      loss = run.region_with(strict, outer, x).sum();
    }
    return loss;
  };
  expect_same(program);
  const Program disabled = [](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    const auto outer = [&run, w](const Tensor& t) {
      return run.region([w](const Tensor& u) { return block(u, w); }, t.sin()).exp().sin();
    };
    Tensor loss = run.region(outer, x).sum();
    refrain::NoCheckpointGuard plain;
    loss.backward();
    return Tensor();
  };
  expect_same(disabled);
  const Program disabled_everywhere = [](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    const auto outer = [&run, w](const Tensor& t) {
      return run.region([w](const Tensor& u) { return block(u, w); }, t.sin()).exp().sin();
    };
    Tensor loss = run.region(outer, x).sum();
    refrain::set_checkpointing_enabled(false);
    try {
      loss.backward();
    } catch (...) {
      refrain::set_checkpointing_enabled(true);
      throw;
    }
    refrain::set_checkpointing_enabled(true);
    return Tensor();
  };
  expect_same(disabled_everywhere);
}

// ---- Early stop -------------------------------------------------------------------------------------------------

// mm, relu, mm: its result is one allocation less if the last is not computed again.
TEST_P(Conformance, TheLastMatmulIsNotComputedAgain) {
  refrain::install_memory_tracking();
  Trial run(true);
  Tensor x = run.param({8, 8}), w = run.param({8, 8});
  const auto allocations = [&](const CheckpointOptions& options) {
    const auto fn = [](const Tensor& a, const Tensor& b) { return a.mm(b).relu().mm(b); };
    Tensor loss = checkpoint(options, fn, x, w).sum();
    refrain::MemoryScope memory;
    torch::autograd::grad({loss}, {x, w});
    return memory.allocations();
  };
  const auto with = options(), without = options().early_stop(false);
  const int64_t stopped = allocations(with);
  if (!reruns()) {
    EXPECT_EQ(refrain::tape_stats().replayed_ops, 2) << "mm and relu";
    return;
  }
  const int64_t whole = stopped + 1;
  EXPECT_EQ(allocations(without), whole);
  {
    refrain::EarlyStopGuard off(false);
    EXPECT_EQ(allocations(with), whole);
    {
      refrain::EarlyStopGuard on(true);
      EXPECT_EQ(allocations(without), stopped);
    }
    EXPECT_EQ(allocations(with), whole);
  }
  EXPECT_EQ(refrain::set_early_stop(false), std::nullopt);
  EXPECT_EQ(allocations(with), whole);
  {
    refrain::EarlyStopGuard on(true);
    EXPECT_EQ(allocations(with), stopped) << "the guard goes before the process";
  }
  EXPECT_EQ(refrain::set_early_stop(true), false);
  EXPECT_EQ(allocations(without), stopped);
  EXPECT_EQ(refrain::set_early_stop(std::nullopt), true);
  EXPECT_EQ(allocations(without), whole);
}

TEST_P(Conformance, NothingIsComputedAgainThatNothingNeeds) {
  reset_ticks();
  Trial run(true, options());
  Tensor x = run.param({4, 4});
  Tensor loss = run.region(
                       [](const Tensor& input) {
                         Tensor t = input;
                         for (int i = 0; i < 4; ++i) t = tick(t.detach(), i) * t;  // saves t and tick(t)
                         t = t + 1;
                         return tick(t.detach(), 5) + t;
                       },
                       x)
                    .sum();
  loss.backward();
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(ticks[i], 2) << "operator " << i;
  EXPECT_EQ(ticks[5], 1) << "computed again although backward needs nothing of it";
}

// An exception that stops the second call passes through handlers of std::exception; those that catch all may swallow it.
TEST_P(Conformance, AFunctionThatCatchesEverything) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region(
            [](const Tensor& t) {
              Tensor y = t.exp().sin();
              try {
                y = y.cos().exp();
              } catch (...) {
                y = t;
              }
              return y + 1;
            },
            x)
        .sum();
  });
}

// ---- Nesting ----------------------------------------------------------------------------------------------------

TEST_P(Conformance, ThreeLevelsOfEveryMixtureOfSources) {
  for (const auto middle : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction}) {
    for (const auto inner : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction}) {
      for (const bool policy : {false, true}) {
        SCOPED_TRACE(std::to_string(static_cast<int>(middle)) + std::to_string(static_cast<int>(inner)) +
                     std::to_string(policy));
        auto middle_options = CheckpointOptions().recompute_mode(middle),
             inner_options = CheckpointOptions().recompute_mode(inner);
        if (policy && inner == RecomputeMode::kReplayOperators) inner_options.policy(refrain::save_matmuls());
        expect_same([=](Trial& run) {
          Tensor x = run.param({8, 8}), w = run.param({8, 8});
          const auto innermost = [w](const Tensor& c, const Tensor& a) {
            return (at::dropout(c.exp(), 0.3, true) + a).mm(w).sin() * a;
          };
          const auto mid = [=, &run](const Tensor& a) {
            Tensor c = at::dropout((a * w).cos(), 0.2, true);
            Tensor d = run.region_with(inner_options, innermost, c, a);
            Tensor e = run.region_with(
                inner_options, [](const Tensor& t) { return t.tanh().exp(); }, d * c);
            return (e + d).sin();
          };
          return run
              .region(
                  [=, &run](const Tensor& t) {
                    Tensor a = at::dropout(t.sin(), 0.1, true);
                    Tensor b = run.region_with(middle_options, mid, a);
                    return (b * a).sin() + run.region_with(inner_options, block, b.sin(), w) * a;
                  },
                  x)
              .sum();
        });
      }
    }
  }
}

TEST_P(Conformance, FiveLevelsDeep) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    struct Descent {
      Trial* run;
      Tensor operator()(const Tensor& t, int depth) const {
        if (depth == 0) return t.sin();
        const auto self = *this;
        return run->region(
            [=](const Tensor& u) {
              Tensor left = self(u.exp().cos(), depth - 1);
              Tensor right = self(u * left, depth - 1);
              return (left + right).sin();
            },
            t);
      }
    };
    return Descent{&run}(x, 5).sum();
  });
}

// What an inner region takes as an argument is held by nobody: the outer one brings it back.
TEST_P(Conformance, NestedRegionsHoldNoArguments) {
  constexpr int64_t kFloats = 1 << 18;
  Trial run(true, options());
  Tensor x = run.param({kFloats});
  refrain::MemoryScope memory;
  Tensor loss = run.region(
      [&run](const Tensor& t) {
        Tensor y = t.sin();
        for (int i = 0; i < 8; ++i) {
          Batch batch{y, y.cos(), {}, "batch"};
          y = run.region(use_batch, batch);
        }
        return y.sum();
      },
      x);
  EXPECT_LT(memory.current(), kFloats * 4);
  loss.backward();
}

// ---- Backward more than once ------------------------------------------------------------------------------------

TEST_P(Conformance, DoubleBackward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor y = run.region([](const Tensor& a, const Tensor& b) { return (a.exp() * b).sin().mm(b).tanh(); }, x, w);
    auto first = torch::autograd::grad({y.sum()}, {x, w}, {}, true, /*create_graph=*/true);
    run.note("first", first[0]);
    return first[0].pow(2).sum() + first[1].sin().sum();
  });
}

TEST_P(Conformance, TripleBackward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4});
    Tensor y = run.region([](const Tensor& a) { return a.exp().sin().tanh(); }, x).sum();
    for (int i = 0; i < 2; ++i) y = torch::autograd::grad({y}, {x}, {}, true, /*create_graph=*/true)[0].pow(2).sum();
    return y;
  });
}

TEST_P(Conformance, TwoBackwards) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor y = run.region(block, x, w);
    y.sum().backward({}, /*retain_graph=*/true);
    y.pow(2).sum().backward();
    EXPECT_THROW(y.sum().backward(), std::exception) << "the graph is gone, as in a plain run";
    flush_engine();
    return Tensor();
  });
}

TEST_P(Conformance, TenBackwardsHoldNoMore) {
  Trial run(true, options());
  Tensor x = run.param({64, 64}), w = run.param({64, 64});
  const auto fn = [](const Tensor& a, const Tensor& b) { return at::dropout(block(a, b), 0.5, true).sin().sum(); };
  Tensor y = run.region(fn, x, w);
  torch::autograd::grad({y}, {x}, {}, true);
  refrain::MemoryScope memory;
  refrain::Bytes peak = 0;
  for (int i = 0; i < 10; ++i) {
    refrain::MemoryScope one;
    torch::autograd::grad({y}, {x}, {}, /*retain_graph=*/true);
    EXPECT_EQ(memory.current(), 0) << "after backward " << i;
    if (i == 0) peak = one.peak();
    EXPECT_EQ(one.peak(), peak);
  }
}

TEST_P(Conformance, WhatABackwardDidNotReadIsDroppedAtItsEnd) {
  constexpr int64_t kFloats = 1 << 18;
  Trial run(true, options());
  Tensor x = run.param({kFloats}), w = run.param({kFloats});
  Tensor want = torch::autograd::grad({w.exp().sin().sum()}, {w})[0];
  const auto fn = [](const Tensor& a, const Tensor& b) { return a.exp().sin().sum() + b.exp().sin().sum(); };
  Tensor loss = run.region(fn, x, w);
  refrain::MemoryScope memory;
  torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true);
  EXPECT_LT(memory.current(), 1 << 18);
  expect_bit_equal(want, torch::autograd::grad({loss}, {w})[0]);
}

TEST_P(Conformance, ACustomFunctionThatReadsTwice) {
  expect_same([](Trial& run) {
    Tensor x = run.param({64});
    return run.region([](const Tensor& t) { return UnpacksTwice::apply(t.exp()).sin(); }, x).sum();
  });
}

// ---- Autocast ---------------------------------------------------------------------------------------------------

TEST_P(Conformance, AutocastInsideAndOutside) {
  for (const bool cache : {true, false}) {
    for (const bool backward_inside : {true, false}) {
      SCOPED_TRACE(std::string(cache ? "cache " : "no cache ") + (backward_inside ? "inside" : "outside"));
      expect_same([=](Trial& run) {
        Tensor x = run.param({8, 8}), w = run.param({8, 8}), loss;
        {
          Autocast autocast(cache);
          Tensor y = run.region([](const Tensor& a, const Tensor& b) { return a.mm(b).relu().mm(b).tanh(); }, x, w);
          loss = y.to(torch::kFloat).sum();
          if (backward_inside) {
            loss.backward();
            run.note("still under autocast", x.mm(w));
          }
        }
        return backward_inside ? Tensor() : loss;
      });
    }
  }
}

TEST_P(Conformance, SiblingsUnderAutocastShareAWeight) {
  for (const bool cache : {true, false}) {
    for (const auto check : {DeterminismCheck::kDefault, DeterminismCheck::kStrict}) {
      expect_same(options().determinism_check(check), [=](Trial& run) {
        Tensor x = run.param({8, 8}), w = run.param({8, 8});
        const auto fn = [](const Tensor& a, const Tensor& b) { return a.mm(b).tanh().mm(b); };
        Tensor loss;
        {
          Autocast autocast(cache);
          Tensor a = run.region(fn, x, w), b = run.region(fn, a, w);
          loss = (b + run.region([=] { return fn(b, w); })).to(torch::kFloat).sum();
        }
        return loss;
      });
    }
  }
}

TEST_P(Conformance, AutocastInPartOfTheFunctionAndAroundBackward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8});
    Tensor loss = run.region(
                         [](const Tensor& a, const Tensor& b) {
                           Tensor y = a.mm(b).sin();
                           {
                             Autocast autocast;
                             y = y.mm(b).tanh().to(torch::kFloat);
                           }
                           return y.mm(b).cos();
                         },
                         x, w)
                      .sum();
    Autocast autocast;
    loss.backward();
    return Tensor();
  });
}

// ---- Exceptions -------------------------------------------------------------------------------------------------

TEST_P(Conformance, AnExceptionInForwardLeavesNothing) {
  const Live before = live();
  Trial run(true, options());
  Tensor x = run.param({64, 64});
  refrain::MemoryScope memory;
  for (int i = 0; i < 3; ++i) {
    const auto fails = [](const Tensor& t) -> Tensor {
      Tensor y = at::dropout(t.exp(), 0.5, true).sin();
      throw std::runtime_error("user's own");
    };
    EXPECT_THROW(run.region(fails, x), std::runtime_error);
    EXPECT_FALSE(is_checkpointing());
  }
  EXPECT_EQ(live(), before);
  EXPECT_EQ(memory.current(), 0);
  expect_same([](Trial& r) { return r.region(block, r.param({4, 4}), r.param({4, 4})).sum(); });
}

// Custom operators run in a replay too, so they can fail there.
TEST_P(Conformance, AnExceptionInRecomputeLeavesThisThreadAsItWas) {
  static std::atomic<bool> broken;
  static const auto library = [] {
    torch::Library lib(torch::Library::FRAGMENT, "refrain_test", std::nullopt, __FILE__, __LINE__);
    lib.def("breakable(Tensor x) -> Tensor");
    lib.impl("breakable", torch::dispatch(c10::DispatchKey::CPU, [](const Tensor& x) {
               if (broken) throw std::runtime_error("broken");
               return at::mul(x, 2.0);
             }));
    return std::make_shared<torch::Library>(std::move(lib));
  }();
  broken = false;
  Trial run(true, options());
  Tensor x = run.param({8, 8}), w = run.param({8, 8});
  const auto fn = [](const Tensor& a, const Tensor& b) {
    Tensor mask = unary("refrain_test::breakable", at::dropout(a.detach(), 0.5, true));
    return (a.mm(b) * mask).sin().exp();
  };
  torch::manual_seed(4);
  Tensor want = torch::autograd::grad({fn(x, w).sum()}, {x})[0];
  torch::manual_seed(4);
  Tensor loss;
  {
    Autocast autocast;
    torch::manual_seed(4);
    want = torch::autograd::grad({fn(x, w).sum()}, {x})[0];
    torch::manual_seed(4);
    loss = run.region(fn, x, w).sum();
  }
  broken = true;
  const Tensor state = at::detail::getDefaultCPUGenerator().get_state();
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(has(message_of<std::runtime_error>([&] { loss.backward({}, /*retain_graph=*/true); }), "broken"));
    flush_engine();
    EXPECT_FALSE(is_recomputing());
    EXPECT_FALSE(is_checkpointing());
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    EXPECT_TRUE(torch::GradMode::is_enabled());
    EXPECT_EQ(torch::get_default_dtype(), caffe2::TypeMeta::Make<float>());
    expect_bit_equal(state, at::detail::getDefaultCPUGenerator().get_state(), "generator");
  }
  broken = false;
  expect_bit_equal(want, torch::autograd::grad({loss}, {x})[0]);
}

// ---- Settings and queries ---------------------------------------------------------------------------------------

TEST_P(Conformance, ContextFunction) {
  std::vector<std::string> log;
  const auto scope = [&log](const std::string& name) -> refrain::ContextScope {
    return [&log, name] {
      log.push_back("enter " + name);
      return std::shared_ptr<void>(nullptr, [&log, name](void*) { log.push_back("leave " + name); });
    };
  };
  const auto with = options().context_fn([&] { return std::pair(scope("forward"), scope("again")); });
  Tensor x = torch::ones({4}, torch::requires_grad());
  const auto fn = [&log](const Tensor& t) {
    log.emplace_back("call");
    return t.exp().sin() + 1;
  };
  if (!reruns()) {
    EXPECT_TRUE(has(message_of<InvalidArgument>([&] { checkpoint(with, fn, x); }), "context_fn"));
    return;
  }
  Tensor y = checkpoint(with, fn, x);
  EXPECT_EQ(log, (std::vector<std::string>{"enter forward", "call", "leave forward"}));
  log.clear();
  y.sum().backward();
  EXPECT_EQ(log, (std::vector<std::string>{"enter again", "call", "leave again"}));
  log.clear();
  const auto broken = options().context_fn([&] {
    return std::pair<refrain::ContextScope, refrain::ContextScope>(scope("forward"), [&log]() -> std::shared_ptr<void> {
      log.emplace_back("refuses");
      throw std::runtime_error("context");
    });
  });
  y = checkpoint(broken, fn, x);
  EXPECT_THROW(y.sum().backward(), std::runtime_error);
  flush_engine();
  EXPECT_FALSE(is_recomputing());
  const auto empty = options().context_fn([] { return std::pair<refrain::ContextScope, refrain::ContextScope>(); });
  checkpoint(empty, fn, x).sum().backward();
}

TEST_P(Conformance, APolicyWithRerunIsRefused) {
  const auto with = options().policy(refrain::save_matmuls());
  Tensor x = torch::ones({4, 4}, torch::requires_grad());
  if (reruns()) {
    EXPECT_TRUE(has(message_of<InvalidArgument>([&] { checkpoint(with, block, x, x); }), "policy"));
  } else {
    checkpoint(with, block, x, x).sum().backward();
  }
}

TEST_P(Conformance, SwitchedOff) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  int calls = 0;
  const auto fn = [&calls](const Tensor& t) {
    ++calls;
    EXPECT_FALSE(is_checkpointing());
    return t.exp().sin();
  };
  {
    refrain::NoCheckpointGuard outer;
    checkpoint(options(), fn, x).sum().backward();
  }
  EXPECT_TRUE(refrain::set_checkpointing_enabled(false));
  checkpoint(options(), fn, x).sum().backward();
  std::thread([&] { checkpoint(options(), fn, x).sum().backward(); }).join();
  EXPECT_FALSE(refrain::set_checkpointing_enabled(true));
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(refrain::tape_stats().recorded_ops, 0);
}

TEST_P(Conformance, GradientsOffIsAPlainCall) {
  Tensor x = torch::ones({4}, torch::requires_grad());
  int calls = 0;
  const auto fn = [&calls](const Tensor& t) {
    ++calls;
    EXPECT_FALSE(is_checkpointing());
    return t.exp().sin();
  };
  {
    torch::NoGradGuard no_grad;
    EXPECT_FALSE(checkpoint(options(), fn, x).requires_grad());
  }
  {
    torch::InferenceMode inference;
    EXPECT_TRUE(checkpoint(options(), fn, x).is_inference());
  }
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(refrain::tape_stats().recorded_ops, 0);
  EXPECT_EQ(live().regions, 0);
}

TEST_P(Conformance, CheckpointingAndRecomputingAreTold) {
  EXPECT_FALSE(is_checkpointing());
  EXPECT_FALSE(is_recomputing());
  Tensor x = torch::ones({4}, torch::requires_grad());
  std::vector<std::pair<bool, bool>> seen;
  const auto inner = [&seen](const Tensor& t) {
    seen.emplace_back(is_checkpointing(), is_recomputing());
    return t.sin().exp();
  };
  const auto fn = [&](const Tensor& t) {
    seen.emplace_back(is_checkpointing(), is_recomputing());
    return inner(t.exp());
  };
  Tensor y = checkpoint(options(), fn, x);
  EXPECT_FALSE(is_checkpointing());
  y.sum().backward();
  EXPECT_FALSE(is_recomputing());
  const std::vector<std::pair<bool, bool>> forward(2, {true, false}), again(2, {false, true});
  auto expected = forward;
  if (reruns()) expected.insert(expected.end(), again.begin(), again.end());
  EXPECT_EQ(seen, expected);
}

TEST_P(Conformance, DefaultDtypeChangedBeforeBackward) {
  Trial run(true, options());
  Tensor x = run.param({16});
  const auto fn = [](const Tensor& t) { return (t * (torch::arange(16) / 3)).sin().exp(); };
  const Tensor want = torch::autograd::grad({fn(x).sum()}, {x})[0];
  Tensor loss = run.region(fn, x).sum();
  torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
  if (reruns()) {
    EXPECT_NO_THROW(loss.backward({}, /*retain_graph=*/true)) << "the second call sees the dtype of forward";
  } else {
    EXPECT_TRUE(has(message_of<CheckpointError>([&] { loss.backward({}, /*retain_graph=*/true); }), "dtype"));
  }
  EXPECT_EQ(torch::get_default_dtype(), caffe2::TypeMeta::Make<double>());
  torch::set_default_dtype(caffe2::TypeMeta::Make<float>());
  flush_engine();
  x.mutable_grad().reset();
  loss.backward();
  expect_bit_equal(want, x.grad());
}

TEST_P(Conformance, CheckpointSequential) {
  expect_same([](Trial& run) {
    torch::nn::Sequential seq;
    for (int i = 0; i < 5; ++i) {
      seq->push_back(torch::nn::Linear(8, 8));
      seq->push_back(torch::nn::GELU());
      seq->push_back(torch::nn::Dropout(0.2));
    }
    Tensor x = run.param({4, 8}), y = x;
    const std::vector<std::function<Tensor(Tensor)>> functions{
        [](Tensor t) { return t.exp(); }, [](Tensor t) { return t.sin(); }, [](Tensor t) { return t.tanh(); }};
    if (run.recorded()) {
      y = refrain::checkpoint_sequential(seq, refrain::Segments::uniform(4), y, run.options());
      y = refrain::checkpoint_sequential(functions, refrain::Segments::uniform(2), y, run.options());
    } else {
      y = seq->forward(y);
      for (const auto& fn : functions) y = fn(y);
    }
    const auto parameters = seq->parameters();
    seq = nullptr;
    poison_heap();
    y.sum().backward();
    for (const auto& p : parameters) run.note("gradient", p.grad());
    return Tensor();
  });
}

// ---- Threads ----------------------------------------------------------------------------------------------------

TEST_P(Conformance, ThreadsWithRegionsOfTheirOwn) {
  constexpr int kSteps = 100;
  Tensor w = torch::eye(8).mul_(0.3).requires_grad_();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int id = 0; id < 2; ++id) {
    threads.emplace_back([&, id] {
      for (int i = 0; i < kSteps; ++i) {
        Tensor x = torch::full({4, 8}, 0.01 * (i + 1) + id);
        const auto fn = [w](const Tensor& t) { return block(t, w).exp().sin(); };
        const Tensor want = torch::autograd::grad({fn(x).sum()}, {w})[0];
        if (!want.equal(torch::autograd::grad({checkpoint(options(), fn, x).sum()}, {w})[0])) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(Conformance, ThreadsWithGeneratorsOfTheirOwn) {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (uint64_t id = 0; id < 2; ++id) {
    threads.emplace_back([&, id] {
      auto generator = at::make_generator<at::CPUGeneratorImpl>(id);
      for (int i = 0; i < 200; ++i) {
        Tensor x = torch::full({64}, 0.01 * i, torch::requires_grad());
        const auto fn = [](const Tensor& t, at::Generator g) {
          return t.exp() * at::empty({64}).bernoulli_(0.5, std::move(g)) * 2;
        };
        Tensor y = checkpoint(options(), fn, x, generator);
        y.sum().backward();
        if (!x.grad().equal(y.detach())) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(Conformance, BackwardOnAnotherThreadThanForward) {
  expect_same([](Trial& run) {
    Tensor x = run.param({8, 8}), w = run.param({8, 8});
    Tensor loss;
    {
      Autocast autocast;
      loss = run.region([&run](const Tensor& t,
                               const Tensor& v) { return run.region(block, at::dropout(t.exp(), 0.5, true), v).sin(); },
                        x, w)
                 .to(torch::kFloat)
                 .sum();
    }
    std::thread([&loss] { loss.backward(); }).join();
    return Tensor();
  });
}

TEST_P(Conformance, TwoThreadsGoBackThroughOneRegion) {
  Trial run(true, options());
  Tensor x = run.param({32, 32});
  const auto fn = [](const Tensor& t) { return at::dropout(t.exp(), 0.5, true).sin().mm(t).cos(); };
  torch::manual_seed(5);
  const Tensor want = torch::autograd::grad({fn(x).sum()}, {x})[0];
  for (int round = 0; round < 20; ++round) {
    torch::manual_seed(5);
    Tensor y = run.region(fn, x);
    Tensors losses = {y.sum(), y.mul(1).sum()}, got(2);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 2; ++i)
      threads.emplace_back([&, i] { got[i] = torch::autograd::grad({losses[i]}, {x}, {}, /*retain_graph=*/true)[0]; });
    for (auto& t : threads) t.join();
    expect_bit_equal(want, got[0], "gradient of thread 0");
    expect_bit_equal(want, got[1], "gradient of thread 1");
  }
}

// ---- Growth and teardown ----------------------------------------------------------------------------------------

TEST_P(Conformance, ManyRegionsWithoutBackwardDoNotGrow) {
  Tensor x = torch::rand({4}, torch::requires_grad());
  const auto options = Conformance::options();
  const auto once = [&] {
    checkpoint(
        options, [](const Tensor& t) { return t.exp().sin(); }, x);
  };
  once();
  const Live before = live();
  refrain::MemoryScope memory;
  for (int i = 0; i < 100'000; ++i) once();
  EXPECT_EQ(live(), before);
  EXPECT_EQ(memory.current(), 0);
}

TEST_P(Conformance, ManyStepsDoNotGrow) {
  Trial run(true, options());
  Tensor x = run.param({4, 4}), w = run.param({4, 4});
  const auto step = [&] {
    const auto fn = [](const Tensor& a, const Tensor& b) { return at::dropout(block(a, b), 0.5, true).sin(); };
    torch::autograd::grad({run.region(fn, x, w).sum()}, {x});
  };
  step();
  const Live before = live();
  refrain::MemoryScope memory;
  for (int i = 0; i < 2000; ++i) step();
  EXPECT_EQ(live(), before);
  EXPECT_EQ(memory.current(), 0);
}

void run_on_a_small_stack(const std::function<void()>& fn) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 1 << 20);
  pthread_t thread;
  const auto start = [](void* arg) -> void* {
    (*static_cast<const std::function<void()>*>(arg))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, start, const_cast<std::function<void()>*>(&fn)), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

TEST_P(Conformance, ThousandsOfJoinedCheckpointsOverflowNoStack) {
  run_on_a_small_stack([] {
    constexpr int kRegions = 5000;
    for (const bool with_backward : {true, false}) {
      Trial run(true, options());
      Tensor x = run.param({4});
      Tensor y = x;
      for (int i = 0; i < kRegions; ++i) y = run.region([](const Tensor& t) { return t.sin().cos(); }, y);
      if (with_backward) y.sum().backward();
    }
  });
}

// The chain hangs together by arguments alone, not by edges of the graph.
TEST_P(Conformance, ThousandsOfCheckpointsJoinedByDetachedArgumentsOverflowNoStack) {
  run_on_a_small_stack([] {
    constexpr int kRegions = 20'000;
    Trial run(true, options());
    Tensor x = run.param({4}), w = run.param({4});
    Tensor y = x * 1;
    for (int i = 0; i < kRegions; ++i)
      y = run.region([](const Tensor& t, const Tensor& v) { return (t.detach().sin() * v).cos(); }, y, w);
  });
}

// ---- What users complain about ----------------------------------------------------------------------------------

TEST_P(Conformance, FrozenFirstLayers) {
  expect_same([](Trial& run) {
    Tensor x = run.input({4, 8}), frozen = run.input({8, 8}), w = run.param({8, 8});
    Tensor y = run.region([](const Tensor& a, const Tensor& f) { return at::gelu(a.mm(f)); }, x, frozen);
    EXPECT_FALSE(y.requires_grad());
    const auto half = [](const Tensor& a, const Tensor& f, const Tensor& v) { return at::gelu(a.mm(f)).mm(v).tanh(); };
    y = run.region(half, y, frozen, w);
    return run.region([=](const Tensor& a) { return a.mm(w).sin(); }, y).sum();
  });
}

TEST_P(Conformance, EachLayerGetsItsOwnInput) {
  expect_same([](Trial& run) {
    std::vector<torch::nn::Linear> layers;
    for (int i = 0; i < 6; ++i) layers.emplace_back(8, 8);
    Tensor x = run.param({4, 8});
    Tensor y =
        run.recorded() ? refrain::checkpoint_sequential(layers, refrain::Segments::uniform(2), x, run.options()) : [&] {
          Tensor t = x;
          for (auto& layer : layers) t = layer(t);
          return t;
        }();
    y.sin().sum().backward();
    for (const auto& layer : layers) run.note("weight", layer->weight.grad());
    return Tensor();
  });
}

struct Cache {
  Tensors keys;
};

Tensor attend(const Tensor& x, const Tensor& w, Cache& cache) {
  cache.keys.push_back(x.mm(w));
  Tensor k = at::cat(cache.keys);
  return x.mm(k.t()).softmax(-1).mm(k);
}

TEST_P(Conformance, ACacheThatGrows) {
  static std::shared_ptr<Cache> cache;
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 8}), w = run.param({8, 8}), y = x;
    cache = std::make_shared<Cache>();
    for (int i = 0; i < 3; ++i)
      y = run.region([c = cache](const Tensor& t, const Tensor& v) { return attend(t, v, *c); }, y, w);
    y.sum().backward();
    EXPECT_EQ(cache->keys.size(), 3U);
    cache->keys.clear();
    return Tensor();
  };
  if (reruns()) {
    EXPECT_TRUE(has(refusal<CheckpointError>(program), "did something else"));
    cache->keys.clear();  // it holds the graph that holds the function that holds it
  } else {
    expect_same(program);
  }
  cache.reset();
}

// Given as an argument, the second call has it as it was.
TEST_P(Conformance, ACacheThatGrowsAsAnArgument) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 8}), w = run.param({8, 8}), y = x;
    Tensors keys;
    for (int i = 0; i < 3; ++i) {
      y = run.region(
          [](const Tensor& t, const Tensor& v, Tensors& k) {
            k.push_back(t.mm(v));
            Tensor all = at::cat(k);
            return t.mm(all.t()).softmax(-1).mm(all);
          },
          y, w, keys);
    }
    EXPECT_EQ(keys.size(), 3U);
    return y.sum();
  });
}

TEST_P(Conformance, TheRouterPicksTheSameExperts) {
  expect_same([](Trial& run) {
    Tensor x = run.param({16, 8}), gate = run.param({8, 4}), experts = run.param({4, 8, 8});
    return run
        .region(
            [](const Tensor& t, const Tensor& g, const Tensor& e) {
              Tensor logits = t.mm(g) + at::randn({16, 4}) * 0.1;
              auto [weight, index] = logits.softmax(-1).topk(2, -1);
              Tensor out = at::zeros_like(t);
              for (int64_t i = 0; i < 4; ++i) {
                Tensor hit = index.eq(i).any(-1).nonzero().squeeze(-1);
                if (hit.numel() > 0) out = out.index_add(0, hit, at::gelu(t.index_select(0, hit).mm(e[i])));
              }
              return out * weight.sum(-1, true);
            },
            x, gate, experts)
        .sum();
  });
}

TEST_P(Conformance, GradInsideARegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region(
            [](const Tensor& t) {
              Tensor inner = t.detach().exp().requires_grad_();
              Tensor g = torch::autograd::grad({inner.sin().mul(inner).sum()}, {inner})[0];
              Tensor y = t.exp().sin();
              Tensor h = torch::autograd::grad({y.sum()}, {t}, {}, true, /*create_graph=*/true)[0];
              return (t * g).sin() * h.cos();
            },
            x)
        .sum();
  });
}

// The inner function differentiates by its argument, a parameter that comes to it through the outer region.
TEST_P(Conformance, GradInsideANestedRegion) {
  for (const auto outer : {RecomputeMode::kReplayOperators, RecomputeMode::kRerunFunction}) {
    expect_same([outer](Trial& run) {
      Tensor x = run.param({4, 4});
      return run
          .region_with(
              CheckpointOptions().recompute_mode(outer),
              [&run](const Tensor& t) {
                return run
                    .region(
                        [](const Tensor& u, const Tensor& leaf) {
                          Tensor y = u.exp() * leaf.sin();
                          auto g = torch::autograd::grad({y.sum()}, {u, leaf}, {}, true, /*create_graph=*/true);
                          return (g[0] * y).sin() * g[1].cos();
                        },
                        t * 2, t)
                    .exp();
              },
              x)
          .sum();
    });
  }
}

// Each inner gradient drops part of its graph while it runs.
TEST_P(Conformance, GradsOfGradsInside) {
  for (const bool stop : {true, false}) {
    expect_same(options().early_stop(stop), [](Trial& run) {
      Tensor x = run.param({4, 4}), w = run.param({4, 4});
      return run
          .region(
              [](const Tensor& t, const Tensor& v) {
                Tensor y = t.exp().mm(v).sin();
                for (int i = 0; i < 2; ++i)
                  y = torch::autograd::grad({y.pow(2).sum()}, {t}, {}, true, /*create_graph=*/true)[0].tanh();
                return y * t;
              },
              x, w)
          .sum();
    });
  }
}

TEST_P(Conformance, GradInsideARegionWithoutEarlyStop) {
  for (const auto check : {DeterminismCheck::kDefault, DeterminismCheck::kStrict}) {
    expect_same(options().early_stop(false).determinism_check(check), [](Trial& run) {
      Tensor x = run.param({4, 4});
      return run
          .region(
              [](const Tensor& t) {
                Tensor y = t.exp().sin();
                Tensor h = torch::autograd::grad({y.sum()}, {t}, {}, true, /*create_graph=*/true)[0];
                return (t * y).sin() * h.cos();
              },
              x)
          .sum();
    });
  }
}

TEST_P(Conformance, GradWithInputs) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor h = x.exp();
    Tensor y = run.region(block, h, w).sum();
    run.note("h", torch::autograd::grad({y}, {h}, {}, /*retain_graph=*/true)[0]);
    run.note("w", torch::autograd::grad({y}, {w}, {}, /*retain_graph=*/true)[0]);
    y.backward({}, /*retain_graph=*/false, /*create_graph=*/false, std::vector<Tensor>{w});
    EXPECT_FALSE(x.grad().defined());
    return Tensor();
  });
}

TEST_P(Conformance, ACompleteStepInsideARegion) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region(
            [](const Tensor& t, const Tensor& v) {
              Tensor a = t.detach().clone().requires_grad_(), b = v.detach().clone().requires_grad_();
              block(a, b).sum().backward();
              return (t * a.grad()).sin() * (v * b.grad()).cos();
            },
            x, w)
        .sum();
  });
}

TEST_P(Conformance, HooksOnSharedParametersFireOnce) {
  int fired = 0;
  Tensor w = torch::eye(4).requires_grad_();
  w.register_hook([&fired](const Tensor& g) {
    ++fired;
    return g * 2;
  });
  const auto step = [&](bool recorded) {
    fired = 0;
    w.mutable_grad().reset();
    Trial run(recorded, options());
    Tensor y = run.param({4, 4});
    for (int i = 0; i < 3; ++i) y = run.region(block, y, w);
    y.sum().backward();
    EXPECT_EQ(fired, 1);
    return w.grad().clone();
  };
  const Tensor want = step(false);
  expect_bit_equal(want, step(true));
}

TEST_P(Conformance, HooksOnTensorsInsideFireOnce) {
  auto fired = std::make_shared<int>(0);
  expect_same([fired](Trial& run) {
    *fired = 0;
    Tensor x = run.param({4});
    Tensor loss = run.region(
                         [fired](const Tensor& t) {
                           Tensor y = t.exp(), mask = y.detach().cos();
                           y.register_hook([mask, fired](const Tensor& g) {
                             ++*fired;
                             return g * mask;
                           });
                           return y.sin();
                         },
                         x)
                      .sum();
    loss.backward();
    EXPECT_EQ(*fired, 1);
    return Tensor();
  });
}

TEST_P(Conformance, NoGradAndDetachInside) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region(
            [](const Tensor& t, const Tensor& v) {
              Tensor scale;
              {
                torch::NoGradGuard no_grad;
                scale = t.mm(v).softmax(0);
                torch::AutoGradMode again(true);
                scale = (scale * t).sin().detach();
              }
              return (t * scale).sin() + t.detach().mm(v).exp();
            },
            x, w)
        .sum();
  });
}

TEST_P(Conformance, ATensorOverwrittenInside) {
  expect_same([](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    return run
        .region(
            [](const Tensor& t, const Tensor& v) {
              Tensor y = t.mm(v);
              y.add_(1).relu_();
              Tensor z = y.mm(v).sin_();
              z.narrow(0, 0, 2).mul_(2);
              return z + y;
            },
            x, w)
        .sum();
  });
}

// Plain autograd refuses: sin's argument has changed. A replay knows the old value.
TEST_P(Conformance, ASavedTensorOverwrittenInside) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    return run
        .region(
            [](const Tensor& t) {
              Tensor y = t * 2;
              Tensor z = y.sin();
              y.mul_(2);
              return (z * 3).exp() + y.cos();
            },
            x)
        .sum();
  };
  const Program twin = [](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y = x * 2;
    return ((y.sin() * 3).exp() + (y * 2).cos()).sum();
  };
  EXPECT_THROW(execute(program, false), std::exception);
  flush_engine();
  if (reruns()) {
    EXPECT_TRUE(has(refusal<CheckpointError>(program), "modified"));
  } else {
    expect_same_as(twin, program);
  }
}

TEST_P(Conformance, ARegionsOutputOverwritten) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4});
    Tensor y = run.region([](const Tensor& t) { return t.sin().exp(); }, x);
    y.mul_(2);
    return y.sum();
  };
  EXPECT_THROW(execute(program, false), std::exception) << "exp keeps its result";
  flush_engine();
  const Program twin = [](Trial& run) {
    Tensor x = run.param({4, 4});
    return (x.sin().exp() * 2).sum();
  };
  if (reruns()) {
    EXPECT_TRUE(has(refusal<CheckpointError>(program), "modified"));
  } else {
    expect_same_as(twin, program);
  }
  expect_same([](Trial& run) {  // plain allows it: sin keeps its argument
    Tensor x = run.param({4, 4});
    Tensor y = run.region([](const Tensor& t) { return t.exp().sin(); }, x);
    y.add_(1);
    return y.sum();
  });
}

TEST_P(Conformance, ARegionsInputOverwritten) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4}), h = x * 2;
    Tensor y = run.region([](const Tensor& t) { return (t + 1).sin().exp(); }, h);
    h.mul_(2);
    return (y * 2).sum() + h.sum();
  };
  if (reruns()) {
    EXPECT_TRUE(has(refusal<CheckpointError>(program), "input tensor 0"));
  } else {
    expect_same(program);
  }
}

// ---- Changed between forward and backward -----------------------------------------------------------------------

TEST_P(Conformance, WeightsChangedBeforeBackwardAreAnError) {
  for (const bool argument : {true, false}) {
    SCOPED_TRACE(argument ? "argument" : "captured");
    const auto text = refusal<CheckpointError>([argument](Trial& run) {
      Tensor x = run.param({4, 4}), w = run.param({4, 4});
      Tensor y = argument ? run.region(block, x, w) : run.region([w](const Tensor& t) { return block(t, w); }, x);
      {
        torch::NoGradGuard no_grad;
        w.add_(1);
      }
      return y.sum();
    });
    EXPECT_TRUE(has(text, "changed") || has(text, "modified")) << text;
    EXPECT_TRUE(has(text, "version")) << text;
  }
}

// LibTorch's optimizers write through `data()`, which bumps no version: plain autograd mixes old results with new weights, and a
// replay does the same to the bit; a second call mixes otherwise.
TEST_P(Conformance, AnOptimizerStepBeforeBackwardBumpsNoVersion) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({4, 4}), w = run.param({4, 4});
    Tensor y = run.region(block, x, w);
    w.mutable_grad() = torch::ones_like(w);
    torch::optim::SGD sgd({w}, 0.1);
    sgd.step();
    w.mutable_grad().reset();
    return y.sum();
  };
  if (reruns()) {
    EXPECT_NE(execute(program, false), execute(program, true, options().determinism_check(DeterminismCheck::kDefault)));
    EXPECT_TRUE(has(refusal<CheckpointError>(program), "changed since, without a new version"));
  } else {
    expect_same(program);
  }
}

// Autograd saves no bias, so plain autograd does not mind. A replay copies it; a second call would read the new one.
TEST_P(Conformance, ABiasChangedBeforeBackward) {
  const auto program = [](bool argument) -> Program {
    return [argument](Trial& run) {
      Tensor x = run.param({4, 4}), b = run.param({4});
      const auto fn = [](const Tensor& t, const Tensor& bias) { return (t + bias).exp().sin(); };
      Tensor y = argument ? run.region(fn, x, b) : run.region([=](const Tensor& t) { return fn(t, b); }, x);
      {
        torch::NoGradGuard no_grad;
        b.add_(1);
      }
      return y.sum();
    };
  };
  if (!reruns()) {
    expect_same(program(true));
    expect_same(program(false));
    return;
  }
  EXPECT_TRUE(has(refusal<CheckpointError>(program(true)), "changed"));
  EXPECT_TRUE(has(refusal<CheckpointError>(program(false)), "changed"));
  EXPECT_NE(execute(program(false), false),
            execute(program(false), true, options().determinism_check(DeterminismCheck::kDefault)))
      << "kDefault does not see captures";
}

// Its own counters are no change from outside.
TEST_P(Conformance, StrictLetsAFunctionWriteItsBuffers) {
  const auto strict = options().determinism_check(DeterminismCheck::kStrict);
  torch::nn::BatchNorm1d bn(3);
  Tensor counter = torch::zeros({});
  Tensor x = torch::rand({8, 3}, torch::requires_grad());
  const auto fn = [bn, counter](const Tensor& t) {
    Tensor y = bn.ptr()->forward(t.exp());
    counter.add_(1);
    return y.sin().exp();
  };
  for (const bool stop : {true, false})
    EXPECT_NO_THROW(checkpoint(CheckpointOptions(strict).early_stop(stop), fn, x).sum().backward());
}

// ---- Statistics -------------------------------------------------------------------------------------------------

TEST_P(Conformance, BatchNormStatistics) {
  const auto moved = [](const CheckpointOptions* options) {
    torch::manual_seed(3);
    torch::nn::BatchNorm1d bn(3);
    Tensor x = torch::rand({8, 3}, torch::requires_grad());
    const auto fn = [bn](const Tensor& t) { return bn.ptr()->forward(t.exp()).sin().exp(); };
    Tensor loss = (options ? checkpoint(*options, fn, x) : fn(x)).sum();
    loss.backward();
    return std::tuple(bytes_of(x.grad()), bytes_of(bn->running_mean), bn->num_batches_tracked.item<int64_t>());
  };
  const auto options = Conformance::options();
  const auto plain = moved(nullptr), ours = moved(&options);
  EXPECT_EQ(std::get<0>(plain), std::get<0>(ours)) << "the gradient";
  EXPECT_EQ(std::get<2>(ours), reruns() ? 2 : 1);
  EXPECT_EQ(std::get<1>(plain) == std::get<1>(ours), !reruns());
}

TEST_P(Conformance, BatchNormStatisticsOnceWithTheQuery) {
  if (!reruns()) GTEST_SKIP() << "the function is called once";
  torch::nn::BatchNorm1d bn(3);
  Tensor x = torch::rand({8, 3}, torch::requires_grad());
  const auto fn = [bn](const Tensor& t) {
    Tensor mean = bn->running_mean, var = bn->running_var;
    if (is_recomputing()) mean = mean.clone(), var = var.clone();
    return at::batch_norm(t.exp(), bn->weight, bn->bias, mean, var, true, 0.1, 1e-5, false).sin().exp();
  };
  Tensor loss = checkpoint(options().determinism_check(DeterminismCheck::kDefault), fn, x).sum();
  const Tensor mean = bn->running_mean.clone();
  loss.backward();
  expect_bit_equal(mean, bn->running_mean);
}

// ---- Cycles -----------------------------------------------------------------------------------------------------

struct KeepsItsOutputImpl : torch::nn::Module {
  KeepsItsOutputImpl() : linear(register_module("linear", torch::nn::Linear(4, 4))) {}
  Tensor forward(const Tensor& x) { return last = linear->forward(x).exp().sin(); }
  torch::nn::Linear linear;
  Tensor last;
};
TORCH_MODULE(KeepsItsOutput);

// A kRerun region keeps its function: a module that keeps its output is then held by itself until backward or the next call.
TEST_P(Conformance, AModuleThatKeepsItsOutput) {
  std::weak_ptr<torch::nn::Module> watch;
  Tensor x = torch::ones({2, 4}, torch::requires_grad());
  {
    KeepsItsOutput module;
    watch = module.ptr();
    checkpoint(options(), module, x).sum().backward();
  }
  EXPECT_TRUE(watch.expired()) << "after backward";
  {
    KeepsItsOutput module;
    watch = module.ptr();
    checkpoint(options(), module, x);
  }
  EXPECT_EQ(watch.expired(), !reruns());
  if (auto module = watch.lock()) module->as<KeepsItsOutput>()->last = Tensor();
  EXPECT_TRUE(watch.expired());
}

TEST_P(Conformance, AFunctionThatCapturesItsInputLeavesNoCycle) {
  const Live before = live();
  refrain::MemoryScope memory;
  {
    Trial run(true, options());
    Tensor x = run.param({64});
    Tensor h = x.exp();
    Tensor y = run.region([h](const Tensor& t) { return (h * t).sin().exp(); }, h);
    y.register_hook([y](const Tensor& g) { return g; });
    Tensor z = run.region(
        [](const Tensor& t) {
          Tensor u = t.exp();
          u.mul_(2);
          return u.sin();
        },
        y);
    y.remove_hook(0);
  }
  EXPECT_EQ(live(), before);
  EXPECT_EQ(memory.current(), 0);
}

// ---- Names that never match -------------------------------------------------------------------------------------

TEST(ConformancePolicies, OperatorNamesThatNeverMatchAreAnError) {
  for (const char* name : {"aten::matmull", "aten::mm.nope", "linear", "my::op"}) {
    SCOPED_TRACE(name);
    EXPECT_NE(message_of<InvalidArgument>([&] { (void)refrain::save_ops({name}); }).find(name), std::string::npos);
  }
}

// ---- Derivatives ------------------------------------------------------------------------------------------------

const Differentiable kDifferentiable = [](const Tensors& in) {
  Tensor h = at::gelu(in[0].mm(in[1]) + in[2]);
  h = at::layer_norm(h.tanh().mm(in[1]), {3});
  return (h.sigmoid() * h).softmax(-1).mm(in[1]).sin();
};

Tensors derivative_inputs() {
  torch::manual_seed(2);
  const auto options = torch::dtype(torch::kDouble);
  return {torch::randn({2, 3}, options), torch::randn({3, 3}, options), torch::randn({3}, options)};
}

TEST(Derivatives, Plain) { check_gradients(kDifferentiable, derivative_inputs()); }

TEST(Derivatives, BothSourcesAndThePolicies) {
  const refrain::Policy every_second = [](const refrain::OpContext& op) {
    return op.position() % 2 == 0 ? refrain::CheckpointPolicy::kMustSave : refrain::CheckpointPolicy::kMustRecompute;
  };
  const auto rerun = CheckpointOptions().recompute_mode(RecomputeMode::kRerunFunction);
  const std::vector<std::pair<const char*, CheckpointOptions>> cases{
      {"replay", CheckpointOptions()},
      {"rerun", rerun},
      {"rerun, strict", CheckpointOptions(rerun).determinism_check(DeterminismCheck::kStrict)},
      {"rerun, no early stop", CheckpointOptions(rerun).early_stop(false)},
      {"save_matmuls", CheckpointOptions().policy(refrain::save_matmuls())},
      {"save_every_second_matmul", CheckpointOptions().policy(refrain::save_every_second_matmul())},
      {"everything_saveable", CheckpointOptions().policy(refrain::everything_saveable())},
      {"every second operator", CheckpointOptions().policy(every_second)},
  };
  for (const auto& [name, options] : cases) {
    SCOPED_TRACE(name);
    const auto one = [&options](const Tensors& in) { return checkpoint(options, kDifferentiable, in); };
    check_gradients(one, derivative_inputs());
    check_gradients(
        [&options](const Tensors& in) {
          return checkpoint(
              options,
              [options](const Tensor& a, const Tensor& b, const Tensor& c) {
                return checkpoint(options, kDifferentiable, Tensors{a.sin(), b, c.exp()}).exp();
              },
              in[0], in[1], in[2]);
        },
        derivative_inputs());
  }
}

// The check can fail.
TEST(Derivatives, AWrongOneIsFound) {
  struct Wrong : torch::autograd::Function<Wrong> {
    static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x) {
      ctx->save_for_backward({x});
      return x.sin();
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                   torch::autograd::variable_list grads) {
      return {grads[0] * ctx->get_saved_variables()[0].cos() * 1.001};
    }
  };
  const auto input = derivative_inputs()[0].requires_grad_();
  const auto fn = [](const Tensors& in) { return Wrong::apply(in[0]).sum(); };
  const auto numeric = numeric_gradients([&](const Tensors& in) { return fn(in).item<double>(); }, {input});
  const auto analytic = torch::autograd::grad({fn({input})}, {input});
  EXPECT_FALSE(at::allclose(numeric[0], analytic[0], 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(numeric[0], analytic[0], 1e-2, 1e-3));
}

}  // namespace
}  // namespace refrain_test
