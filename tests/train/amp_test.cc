#include "refrain/amp.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <sstream>

#include "refrain/error.h"

namespace refrain {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename Exception, typename F>
std::string message_of(F&& fn) {
  try {
    fn();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

#define EXPECT_REFUSED(part, statement)                                                    \
  EXPECT_NE(message_of<InvalidArgument>([&] { statement; }).find(part), std::string::npos) \
      << message_of<InvalidArgument>([&] { statement; })

/// All that a scope sets, of the CPU.
struct Autocast {
  bool enabled = at::autocast::is_autocast_enabled(at::kCPU);
  at::ScalarType dtype = at::autocast::get_autocast_dtype(at::kCPU);
  bool cache = at::autocast::is_autocast_cache_enabled();
  bool operator==(const Autocast&) const = default;
};

TEST(AutocastScopeTest, CastsWhileItLives) {
  const auto x = torch::randn({2, 3}), w = torch::randn({3, 4});
  EXPECT_EQ(x.mm(w).scalar_type(), at::kFloat);
  {
    AutocastScope bf16(at::kCPU, at::kBFloat16);
    EXPECT_EQ(x.mm(w).scalar_type(), at::kBFloat16);
    {
      AutocastScope f16(x.device(), at::kHalf);
      EXPECT_EQ(x.mm(w).scalar_type(), at::kHalf);
      const auto off = AutocastScope::off(at::kCPU);
      EXPECT_EQ(x.mm(w).scalar_type(), at::kFloat);
    }
    EXPECT_EQ(x.mm(w).scalar_type(), at::kBFloat16);
  }
  EXPECT_EQ(x.mm(w).scalar_type(), at::kFloat);
}

TEST(AutocastScopeTest, RestoresWhatItFound) {
  const Autocast before;
  {
    AutocastScope outer(at::kCPU, at::kHalf, /*cache_enabled=*/false);
    const Autocast in_outer;
    EXPECT_EQ(in_outer, (Autocast{true, at::kHalf, false}));
    {
      AutocastScope inner(at::kCPU, at::kBFloat16);
      EXPECT_EQ(Autocast(), (Autocast{true, at::kBFloat16, false}));  // the cache as outside
    }
    EXPECT_EQ(Autocast(), in_outer);
    {
      const auto off = AutocastScope::off(at::kCPU);
      EXPECT_EQ(Autocast(), (Autocast{false, at::kHalf, false}));
    }
    EXPECT_EQ(Autocast(), in_outer);
    try {
      AutocastScope inner(at::kCPU, at::kBFloat16, true);
      throw std::runtime_error("passes through");
    } catch (const std::runtime_error&) {
    }
    EXPECT_EQ(Autocast(), in_outer);
  }
  EXPECT_EQ(Autocast(), before);
}

/// Whether a product sees a weight that changed, in the scope, after it was read there.
bool sees_change(Tensor& w, const Tensor& x) {
  const auto first = x.mm(w);
  w.data().add_(1);
  return !torch::equal(first, x.mm(w));
}

TEST(AutocastScopeTest, TheOutermostEndEmptiesTheCache) {
  const auto x = torch::ones({1, 4});
  auto w = torch::ones({4, 4}, torch::requires_grad());
  {
    AutocastScope outer(at::kCPU, at::kBFloat16);
    EXPECT_FALSE(sees_change(w, x));
    const auto cached = x.mm(w);
    { AutocastScope inner(at::kCPU, at::kBFloat16); }
    { AutocastScope of_another_device(at::kCUDA, at::kHalf); }
    { const auto off = AutocastScope::off(at::kCPU); }
    EXPECT_TRUE(torch::equal(x.mm(w), cached));
  }
  AutocastScope next_step(at::kCPU, at::kBFloat16);
  EXPECT_EQ(x.mm(w)[0][0].item<float>(), 8.0F);
}

TEST(AutocastScopeTest, WithoutTheCacheNothingIsStale) {
  const auto x = torch::ones({1, 4});
  auto w = torch::ones({4, 4}, torch::requires_grad());
  AutocastScope scope(at::kCPU, at::kBFloat16, /*cache_enabled=*/false);
  EXPECT_TRUE(sees_change(w, x));
}

TEST(AutocastScopeTest, RefusesWhatAutocastCannot) {
  EXPECT_REFUSED("dtype Float: expected BFloat16 or Half", AutocastScope(at::kCPU, at::kFloat));
  EXPECT_REFUSED("device type meta", AutocastScope(at::kMeta, at::kHalf));
  EXPECT_REFUSED("device type meta", (void)AutocastScope::off(at::kMeta));
}

/// Parameters with an optimizer that only subtracts gradients.
struct Trained {
  explicit Trained(const Tensor& start)
      : w(start.clone().set_requires_grad(true)), sgd(std::vector{w}, torch::optim::SGDOptions(1.0)) {}
  /// Adds `gradient` times the scale to what `w` has.
  void backward(GradScaler& scaler, const Tensor& gradient) { scaler.scale((w * gradient).sum()).backward(); }

  Tensor w;
  torch::optim::SGD sgd;
};

TEST(GradScalerTest, DefaultsAreTorchs) {
  const auto state = *GradScaler().state();
  EXPECT_EQ(state, (GradScalerState{65536.0, 2.0, 0.5, 2000, 0}));
}

TEST(GradScalerTest, ScalesUnscalesAndSteps) {
  GradScaler scaler(GradScalerOptions().init_scale(8));
  Trained a(torch::tensor({1.0F, 2.0F}));
  const auto scaled = scaler.scale(std::vector{torch::tensor(3.0F), torch::tensor(4.0F)});
  EXPECT_EQ(scaled[0].item<float>(), 24.0F);
  EXPECT_EQ(scaled[1].item<float>(), 32.0F);
  a.backward(scaler, torch::tensor({0.25F, -0.5F}));
  EXPECT_TRUE(torch::equal(a.w.grad(), torch::tensor({2.0F, -4.0F})));
  scaler.unscale_(a.sgd);
  EXPECT_TRUE(torch::equal(a.w.grad(), torch::tensor({0.25F, -0.5F})));
  EXPECT_TRUE(scaler.step(a.sgd));
  scaler.update();
  EXPECT_TRUE(torch::equal(a.w, torch::tensor({0.75F, 2.5F})));
  EXPECT_EQ(scaler.get_scale(), 8.0);
}

TEST(GradScalerTest, SkipsAndBacksOffOnInfAndNan) {
  for (const double bad : {kInfinity, -kInfinity, std::nan("")}) {
    GradScaler scaler(GradScalerOptions().init_scale(8).growth_interval(2));
    Trained a(torch::ones({2}));
    a.backward(scaler, torch::tensor({1.0, bad}).to(torch::kFloat));
    EXPECT_FALSE(scaler.step(a.sgd));
    scaler.update();
    EXPECT_TRUE(torch::equal(a.w, torch::ones({2})));
    EXPECT_EQ(scaler.get_scale(), 4.0);
    for (const double expected : {4.0, 8.0, 8.0}) {
      a.sgd.zero_grad();
      a.backward(scaler, torch::ones({2}));
      EXPECT_TRUE(scaler.step(a.sgd));
      scaler.update();
      EXPECT_EQ(scaler.get_scale(), expected);
    }
  }
}

TEST(GradScalerTest, InfOfOneOptimizerSkipsItAloneAndLowersTheScaleOfAll) {
  GradScaler scaler;
  Trained a(torch::ones({2})), b(torch::ones({2}));
  a.backward(scaler, torch::tensor({1.0F, 2.0F}));
  b.backward(scaler, torch::tensor({1.0, kInfinity}).to(torch::kFloat));
  EXPECT_TRUE(scaler.step(a.sgd));
  EXPECT_FALSE(scaler.step(b.sgd));
  scaler.update();
  EXPECT_TRUE(torch::equal(a.w, torch::tensor({0.0F, -1.0F})));
  EXPECT_TRUE(torch::equal(b.w, torch::ones({2})));
  EXPECT_EQ(scaler.get_scale(), 32768.0);
}

TEST(GradScalerTest, ClippingBetweenSeesTheRealGradients) {
  GradScaler scaler;
  Trained a(torch::zeros({2}));
  a.backward(scaler, torch::tensor({3.0F, 4.0F}));
  scaler.unscale_(a.sgd);
  EXPECT_EQ(torch::nn::utils::clip_grad_norm_(std::vector{a.w}, 1.0), 5.0);
  EXPECT_TRUE(scaler.step(a.sgd));
  EXPECT_TRUE(torch::allclose(a.w, torch::tensor({-0.6F, -0.8F}))) << a.w;
}

TEST(GradScalerTest, SavesGradientsThatFloat16WouldLose) {
  const auto gradient = [](GradScaler scaler) {
    Trained a(torch::full({1, 1}, 1e-4));
    AutocastScope autocast(at::kCPU, at::kHalf);
    const auto y = torch::full({1, 1}, 1e-4).mm(a.w).to(torch::kFloat);
    scaler.scale((y * 1e-4).sum()).backward();
    scaler.unscale_(a.sgd);
    return a.w.grad().item<double>();
  };
  EXPECT_EQ(gradient(GradScaler(GradScalerOptions().enabled(false))), 0.0);
  EXPECT_NEAR(gradient(GradScaler()), 1e-8, 1e-11);
}

/// A table of vectors looked up at `rows`, whose gradient is sparse.
Tensor look_up(const Tensor& table, std::vector<int64_t> rows) {
  return torch::embedding(table, torch::tensor(rows), -1, /*scale_grad_by_freq=*/false, /*sparse=*/true);
}

TEST(GradScalerTest, SparseGradientsWithDuplicateRows) {
  GradScaler scaler;
  Trained a(torch::zeros({4, 2}));
  scaler.scale((look_up(a.w, {1, 3, 1}) * torch::tensor({{1.0F}, {2.0F}, {3.0F}})).sum()).backward();
  ASSERT_TRUE(a.w.grad().is_sparse());
  ASSERT_FALSE(a.w.grad().is_coalesced());
  EXPECT_TRUE(scaler.step(a.sgd));
  scaler.update();
  EXPECT_TRUE(torch::equal(a.w.select(1, 0), torch::tensor({0.0F, -4.0F, 0.0F, -2.0F}))) << a.w;

  a.sgd.zero_grad();
  scaler.scale((look_up(a.w, {0, 2}) * kInfinity).sum()).backward();
  EXPECT_FALSE(scaler.step(a.sgd));
  scaler.update();
  EXPECT_EQ(scaler.get_scale(), 32768.0);
}

TEST(GradScalerTest, RefusesFloat16GradientsBeforeTouchingAny) {
  GradScaler scaler;
  auto w = torch::ones({2}, torch::requires_grad()), half = torch::ones({2}, torch::kHalf).set_requires_grad(true),
       table = torch::ones({2, 2}, torch::kHalf).set_requires_grad(true);
  torch::optim::SGD dense(std::vector{w, half}, torch::optim::SGDOptions(1.0)), sparse(std::vector{table}, 1.0);
  scaler.scale(w.sum()).backward();
  half.mutable_grad() = torch::ones_like(half);
  look_up(table, {1, 1}).sum().backward();
  EXPECT_REFUSED("float16 gradient", scaler.unscale_(dense));
  EXPECT_REFUSED("float16 gradient", scaler.step(sparse));
  EXPECT_TRUE(torch::equal(w.grad(), torch::full({2}, 65536.0F)));
}

TEST(GradScalerTest, RefusesCallsOutOfOrder) {
  GradScaler scaler;
  Trained a(torch::ones({2})), without_gradients(torch::ones({2}));
  EXPECT_REFUSED("unscale_: nothing was scaled yet", scaler.unscale_(a.sgd));
  EXPECT_REFUSED("step: nothing was scaled yet", scaler.step(a.sgd));
  EXPECT_REFUSED("update: nothing was scaled yet", scaler.update());
  EXPECT_REFUSED("update: nothing was scaled yet", scaler.update(2.0));
  EXPECT_REFUSED("undefined tensor", scaler.scale(Tensor()));
  a.backward(scaler, torch::ones({2}));
  EXPECT_REFUSED("no gradients were checked", scaler.update());
  EXPECT_REFUSED("closure", scaler.step(a.sgd, [] { return torch::ones({}); }));
  EXPECT_REFUSED("none of the optimizer's parameters has a gradient", scaler.step(without_gradients.sgd));
  scaler.unscale_(a.sgd);
  EXPECT_REFUSED("unscale_: called twice", scaler.unscale_(a.sgd));
  EXPECT_TRUE(scaler.step(a.sgd));
  EXPECT_REFUSED("step: called twice", scaler.step(a.sgd));
  EXPECT_REFUSED("unscale_: called after step", scaler.unscale_(a.sgd));
  scaler.update();
  EXPECT_REFUSED("no gradients were checked", scaler.update());
  a.backward(scaler, torch::ones({2}));
  EXPECT_TRUE(scaler.step(a.sgd));
}

TEST(GradScalerTest, NotEnabledItOnlySteps) {
  GradScaler scaler(GradScalerOptions().enabled(false));
  Trained a(torch::ones({2}));
  a.backward(scaler, torch::tensor({1.0, kInfinity}).to(torch::kFloat));
  scaler.unscale_(a.sgd);
  EXPECT_TRUE(scaler.step(a.sgd));
  EXPECT_EQ(a.w[1].item<double>(), -kInfinity);
  EXPECT_EQ(scaler.step(a.sgd, [] { return torch::full({}, 7.0); }).item<double>(), 7.0);
  scaler.update();
  scaler.update(3.0);
  EXPECT_EQ(scaler.get_scale(), 1.0);
  EXPECT_EQ(scaler.state(), std::nullopt);
  scaler.load_state(std::nullopt);
}

TEST(GradScalerTest, OptionsAndSettersOutOfRange) {
  EXPECT_REFUSED("init_scale 0", GradScaler(GradScalerOptions().init_scale(0)));
  EXPECT_REFUSED("init_scale inf", GradScaler(GradScalerOptions().init_scale(kInfinity)));
  EXPECT_REFUSED("growth_factor 1:", GradScaler(GradScalerOptions().growth_factor(1)));
  EXPECT_REFUSED("growth_factor nan", GradScaler(GradScalerOptions().growth_factor(std::nan(""))));
  EXPECT_REFUSED("backoff_factor 1:", GradScaler(GradScalerOptions().backoff_factor(1)));
  EXPECT_REFUSED("growth_interval 0", GradScaler(GradScalerOptions().growth_interval(0)));
  GradScaler scaler;
  EXPECT_REFUSED("growth_factor", scaler.set_growth_factor(0.5));
  EXPECT_REFUSED("backoff_factor", scaler.set_backoff_factor(2));
  EXPECT_REFUSED("growth_interval", scaler.set_growth_interval(-1));
  EXPECT_EQ(*scaler.state(), *GradScaler().state());
  scaler.set_growth_factor(4);
  scaler.set_backoff_factor(0.25);
  scaler.set_growth_interval(1);
  Trained a(torch::ones({1}));
  a.backward(scaler, torch::ones({1}));
  scaler.step(a.sgd);
  scaler.update();
  EXPECT_EQ(scaler.get_scale(), 4 * 65536.0);
}

TEST(GradScalerTest, UpdateToAGivenScale) {
  GradScaler scaler;
  Trained a(torch::ones({1}));
  a.backward(scaler, torch::ones({1}));
  scaler.step(a.sgd);
  scaler.update(3.0);
  EXPECT_EQ(scaler.get_scale(), 3.0);
  scaler.step(a.sgd);  // a new iteration has begun
  scaler.update(torch::tensor({5.0}, torch::kDouble));
  EXPECT_EQ(scaler.get_scale(), 5.0);
  EXPECT_REFUSED("new_scale -1", scaler.update(-1.0));
  EXPECT_REFUSED("one floating point element", scaler.update(torch::ones({2})));
  EXPECT_REFUSED("one floating point element", scaler.update(torch::ones({1}, torch::requires_grad())));
  EXPECT_REFUSED("one floating point element", scaler.update(torch::ones({1}, torch::kLong)));
  EXPECT_EQ(scaler.get_scale(), 5.0);
}

/// A scaler in the middle of a training, with all fields unlike the defaults.
GradScaler used_scaler(int updates = 7) {
  GradScaler scaler(GradScalerOptions().init_scale(1024).growth_factor(3).backoff_factor(0.25).growth_interval(5));
  Trained a(torch::ones({1}));
  for (int i = 0; i < updates; ++i) {
    a.sgd.zero_grad();
    a.backward(scaler, torch::ones({1}));
    scaler.step(a.sgd);
    scaler.update();
  }
  return scaler;
}

TEST(GradScalerTest, StateGoesThroughStructsAndArchives) {
  const GradScaler used = used_scaler();
  const GradScalerState expected{3 * 1024.0, 3, 0.25, 5, 2};
  EXPECT_EQ(*used.state(), expected);

  GradScaler fresh, other = used_scaler(1);
  std::stringstream file;
  torch::save(used, file);
  torch::load(fresh, file);
  other.load_state(used.state());
  for (GradScaler* loaded : {&fresh, &other}) {
    EXPECT_EQ(*loaded->state(), expected);
    Trained a(torch::ones({1}));
    for (const double scale : {3 * 1024.0, 3 * 1024.0, 9 * 1024.0}) {
      a.backward(*loaded, torch::ones({1}));
      loaded->step(a.sgd);
      loaded->update();
      EXPECT_EQ(loaded->get_scale(), scale);
    }
  }
}

TEST(GradScalerTest, WrongStatesChangeNothing) {
  GradScaler scaler = used_scaler();
  const auto before = *scaler.state();
  std::stringstream of_disabled, of_a_tensor;
  torch::save(GradScaler(GradScalerOptions().enabled(false)), of_disabled);
  torch::save(torch::ones({1}), of_a_tensor);
  EXPECT_REFUSED("not enabled", torch::load(scaler, of_disabled));
  const auto message = message_of<FormatError>([&] { torch::load(scaler, of_a_tensor); });
  EXPECT_NE(message.find("found no `enabled`"), std::string::npos) << message;
  auto broken = before;
  broken.growth_tracker = -1;
  EXPECT_REFUSED("growth_tracker -1", scaler.load_state(broken));
  broken = before;
  broken.scale = kInfinity;
  EXPECT_REFUSED("scale inf", scaler.load_state(broken));
  EXPECT_EQ(*scaler.state(), before);
}

}  // namespace
}  // namespace refrain
