// What docs/guide/pitfalls.md says beyond the conformance table.
#include <random>

#include "tests/tape/sources.h"

namespace refrain_test {
namespace {

class Pitfalls : public BothSources {};
REFRAIN_BOTH_SOURCES(Pitfalls);

TEST_P(Pitfalls, ARegionAroundOneLayerSavesNothing) {
  std::vector<torch::nn::Linear> layers;
  for (int i = 0; i < 8; ++i) layers.emplace_back(64, 64);
  const Tensor x = torch::randn({64, 64});
  auto all = [layers](Tensor h) mutable {
    for (auto& layer : layers) h = at::gelu(layer(h));
    return h;
  };
  const auto gelu = [](const Tensor& h) { return at::gelu(h); };
  const auto held = [&](const auto& forward) {
    refrain::MemoryScope memory;
    const Tensor y = forward();
    return memory.current() - static_cast<int64_t>(y.nbytes());
  };
  const auto per_layer = [&] {
    Tensor h = x;
    for (auto& layer : layers) h = refrain::checkpoint(options(), gelu, refrain::checkpoint(options(), layer, h));
    return h;
  };
  const int64_t plain = held([&] { return all(x); });
  EXPECT_GE(held(per_layer), plain);
  EXPECT_LT(held([&] { return refrain::checkpoint(options(), all, x); }), plain / 8);
  if (!reruns()) {
    EXPECT_FALSE(refrain::saved_tensors(options(), layers[0], x).hints.empty());
  }
}

// Load balancing moves a bias between steps; micro-batches make that before the backward of another.
TEST_P(Pitfalls, ARouterWithABiasThatMoves) {
  const Program program = [](Trial& run) {
    Tensor x = run.param({8, 4}), w = run.param({4, 4});
    Tensor bias = torch::zeros({4});
    Tensor y = run.region(
        [bias, w](const Tensor& t) {
          Tensor scores = t.mm(w).softmax(-1);
          Tensor pick = std::get<1>((scores.detach() + bias).topk(1, -1));
          return scores.gather(1, pick).exp().sin();
        },
        x);
    {
      torch::NoGradGuard no_grad;
      bias[0].add_(10);
    }
    return y.sum();
  };
  if (!reruns()) return static_cast<void>(expect_same(program));
  const auto loose = options().determinism_check(DeterminismCheck::kDefault);
  EXPECT_NE(execute(program, false), execute(program, true, loose)) << "other experts, of the same sizes";
  EXPECT_TRUE(has(refusal<CheckpointError>(program), "changed"));
}

TEST_P(Pitfalls, RandomNumbersFromElsewhere) {
  const Program shared = [](Trial& run) {
    Tensor x = run.param({8});
    auto engine = std::make_shared<std::mt19937>(1);
    return run
        .region([engine](const Tensor& t) { return (t * static_cast<double>((*engine)() % 1000)).sin().exp(); }, x)
        .sum();
  };
  if (reruns()) {
    EXPECT_NE(execute(shared, false), execute(shared, true, options().determinism_check(DeterminismCheck::kDefault)));
    EXPECT_TRUE(has(refusal<CheckpointError>(shared), "other arguments that are not tensors"));
  } else {
    expect_same(shared);
  }
  expect_same([](Trial& run) {
    Tensor x = run.param({8});
    std::mt19937 engine(1);
    return run
        .region([engine](const Tensor& t) mutable { return (t * static_cast<double>(engine() % 1000)).sin().exp(); }, x)
        .sum();
  });
}

TEST_P(Pitfalls, SideEffectsHappenTwiceWhereTheFunctionIsCalledTwice) {
  auto counts = std::make_shared<std::pair<int, int>>();
  Tensor x = torch::rand({4}, torch::requires_grad());
  refrain::checkpoint(
      options(),
      [counts](const Tensor& t) {
        ++counts->first;
        if (!refrain::is_recomputing()) ++counts->second;
        return t.exp().sin();
      },
      x)
      .sum()
      .backward();
  EXPECT_EQ(counts->first, reruns() ? 2 : 1);
  EXPECT_EQ(counts->second, 1);
}

TEST_P(Pitfalls, ABackwardInsideAddsToGradientsAgain) {
  const auto program = [](bool ask) -> Program {
    return [ask](Trial& run) {
      Tensor x = run.param({4, 4}), w = run.param({4, 4});
      // the two calls differ on purpose, which the strict check does not accept
      const auto loose =
          refrain::CheckpointOptions(run.options()).determinism_check(refrain::DeterminismCheck::kDefault);
      return run
          .region_with(
              loose,
              [ask, w](const Tensor& t) {
                Tensor inner = t.detach().mm(w).sin().sum();
                if (!ask || !refrain::is_recomputing()) inner.backward();
                return t.mm(w).exp().sin();
              },
              x)
          .sum();
    };
  };
  expect_same(program(true));
  if (reruns()) {
    EXPECT_NE(execute(program(false), false), execute(program(false), true, options()));
  } else {
    expect_same(program(false));
  }
}

/// Counts warnings that say `text`.
class Warnings final : public c10::WarningHandler {
 public:
  explicit Warnings(std::string text) : text_(std::move(text)), guard_(this) {
    c10::WarningUtils::set_warnAlways(true);
  }
  ~Warnings() override { c10::WarningUtils::set_warnAlways(false); }
  void process(const c10::Warning& warning) override { count += warning.msg().find(text_) != std::string::npos; }
  int count = 0;

 private:
  std::string text_;
  c10::WarningUtils::WarningHandlerGuard guard_;
};

// no_grad or detach around all of a region: gradients are as in a plain run, that is, none; and somebody says so.
TEST(PitfallsOfTheTape, ARegionInWhichAutogradSavesNothingWarns) {
  auto x = torch::randn({4}).requires_grad_();
  const auto warned = [&](auto&& fn) {
    Warnings warnings("autograd saved nothing in a region");
    auto y = refrain::checkpoint(fn, x);
    return warnings.count;
  };
  EXPECT_EQ(warned([](const Tensor& a) {
              torch::NoGradGuard no_grad;
              return a.sin().exp();
            }),
            1);
  EXPECT_EQ(warned([](const Tensor& a) { return a.sin().exp().detach(); }), 1);
  EXPECT_EQ(warned([](const Tensor& a) { return a.sin().exp(); }), 0);
  EXPECT_EQ(warned([](const Tensor& a) { return a.detach().sin(); }),
            0);  // an input without gradient, as in frozen layers
}

}  // namespace
}  // namespace refrain_test
