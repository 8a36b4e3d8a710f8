#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "machine.h"

/// Steps with the user's own autograd functions and the user's own operators.
namespace refrain::fuzz {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// Saves its input.
struct Cube : Function<Cube> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    ctx->save_for_backward({x});
    return x * x * x * 0.2;
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const Tensor x = ctx->get_saved_variables()[0];
    return {g[0] * x * x * 0.6};
  }
};

/// Saves its output.
struct Squash : Function<Squash> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    Tensor y = x.tanh();
    ctx->save_for_backward({y});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const Tensor y = ctx->get_saved_variables()[0];
    return {g[0] * (1 - y * y)};
  }
};

/// Saves inputs, an output and something that is neither; two outputs.
struct Gate : Function<Gate> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& y) {
    Tensor s = x.sigmoid();
    Tensor z = s * y;
    ctx->save_for_backward({x, y, s, z});
    return {z, z.exp().clamp_max(5)};
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const auto saved = ctx->get_saved_variables();
    Tensor through = g[0];
    if (g[1].defined()) through = (through.defined() ? through : at::zeros_like(g[1])) + g[1] * saved[3].cos();
    if (!through.defined()) return {Tensor(), Tensor()};
    return {through * saved[1] * saved[2] * (1 - saved[2]) + 0 * saved[0], through * saved[2]};
  }
};

/// Writes its input.
struct HalveInPlace : Function<HalveInPlace> {
  static Tensor forward(AutogradContext* ctx, Tensor x) {
    x.mul_(0.5);
    ctx->mark_dirty({x});
    return x;
  }
  static variable_list backward(AutogradContext*, variable_list g) { return {g[0] * 0.5}; }
};

/// Its backward writes what it saved, which is nobody's handle; in the twin a copy.
struct ScaleSaved : Function<ScaleSaved> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, bool twin) {
    ctx->save_for_backward({x});
    ctx->saved_data["twin"] = twin;
    return x * 0.7;
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    Tensor x = ctx->get_saved_variables()[0];
    at::NoGradGuard no_grad;
    if (ctx->saved_data["twin"].toBool()) x = x.clone();
    return {g[0] * x.mul_(0.5), Tensor()};
  }
};

/// Saves a tensor before it writes it, without a new version; backward multiplies by it.
struct SavesFirst : torch::autograd::Node {
  variable_list apply(variable_list&& g) override { return {g[0].defined() ? g[0] * saved.unpack() : Tensor()}; }
  void release_variables() override { saved.reset_data(); }
  torch::autograd::SavedVariable saved;
};

Tensor noise_saved_first(const Tensor& x, double p, const at::Generator& own) {
  Tensor noise = at::empty_like(x.detach());
  auto node = c10::make_intrusive<SavesFirst>();
  node->set_next_edges(torch::autograd::collect_next_edges(x));
  node->saved = torch::autograd::SavedVariable(noise, false);
  noise.variable_data().bernoulli_(p, own);
  at::NoGradGuard no_grad;
  Tensor y = x * noise;
  torch::autograd::set_history(y, node);
  return y;
}

/// Its backward runs a backward, `depth` deep.
struct Nest : Function<Nest> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t depth, bool in_region) {
    ctx->save_for_backward({x});
    ctx->saved_data["depth"] = depth;
    ctx->saved_data["in_region"] = in_region;
    return x.sin();
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const Tensor x = ctx->get_saved_variables()[0];
    const auto depth = ctx->saved_data["depth"].toInt();
    const bool in_region = ctx->saved_data["in_region"].toBool();
    at::AutoGradMode grad(true);
    const Tensor inner = x.detach().requires_grad_();
    const auto body = [depth, in_region](const Tensor& t) {
      return depth > 0 ? Nest::apply(t.cos(), depth - 1, in_region) : t.cos().tanh();
    };
    const Tensor y = in_region ? refrain::checkpoint(body, inner) : body(inner);
    const Tensor slope = torch::autograd::grad({y.sum()}, {inner})[0];
    return {g[0] * (x.cos() + 0.1 * slope), Tensor(), Tensor()};
  }
};

void nest(Machine& m, int64_t depth) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.requires_grad(); });
  const bool in_region = m.rng.chance(0.5);
  m.detail("depth=", depth, in_region ? " regions" : "");
  m.emit("Nest", {x}, Nest::apply(x->t, depth, in_region && m.checkpoints()));
}

void step_nest(Machine& m) { nest(m, m.rng.below(4)); }

/// LibTorch goes on in another thread from 60 on.
void step_deep_nest(Machine& m) {
  nest(m, 62 + m.rng.below(10));
  m.nests_deep();
}

void step_saves_first(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.requires_grad(); });
  if (!at::GradMode::is_enabled()) throw Skip{};
  m.emit("noise_saved_first", {x}, noise_saved_first(x->t, 0.6, m.generators[0]));
}

/// Others save the same tensor, and read it in backward before the write, or after it: then LibTorch refuses.
void step_scale_saved(Machine& m) {
  auto x = m.pick(is_float);
  switch (m.rng.below(3)) {
    case 0:
      return m.emit("ScaleSaved", {x}, ScaleSaved::apply(x->t + 1, m.is_twin()));
    case 1: {
      const Tensor y = x->t.sigmoid() + 1;
      return m.emit("ScaleSaved_and_sin", {x}, y.sin() + ScaleSaved::apply(y, m.is_twin()));
    }
    default:
      return m.emit("ScaleSaved_of_exp", {x}, ScaleSaved::apply(x->t.clamp(-2, 2).exp(), m.is_twin()));
  }
}

void step_function(Machine& m) {
  auto x = m.pick(is_float);
  switch (m.rng.below(5)) {
    case 0:
      return m.emit("Cube", {x}, Cube::apply(x->t));
    case 1:
    case 2:
      return m.emit("Squash", {x}, Squash::apply(x->t));
    case 3: {
      auto y =
          m.pick([&](const Tensor& t) { return t.scalar_type() == x->t.scalar_type() && t.sizes() == x->t.sizes(); });
      return m.emit_some("Gate", {x, y}, Gate::apply(x->t, y->t));
    }
    default: {
      auto target = m.pick_to_write([](const Tensor& t) { return !t.is_view() && !t.is_leaf(); });
      HalveInPlace::apply(m.writable(target));
      return m.wrote("HalveInPlace", target);
    }
  }
}

// ---- operators ----

Tensor noisy_cpu(const Tensor& x) { return x * (at::rand_like(x) + 0.5); }

std::tuple<Tensor, Tensor> blend_cpu(at::TensorList xs, const std::optional<Tensor>& w, double s) {
  Tensor sum = xs[0] * s;
  for (size_t i = 1; i < xs.size(); ++i) sum = sum + xs[i];
  if (w.has_value() && w->defined()) sum = sum * *w;
  return {sum, sum.sin()};
}

void tally_cpu(Tensor& count, const Tensor& x) { count.add_(x.numel()); }

Tensor call_noisy(const Tensor& x) {
  using NoisyType = Tensor(const Tensor&);
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("refrain_fuzz::noisy", "").typed<NoisyType>();
  return op.call(x);
}

using BlendType = std::tuple<Tensor, Tensor>(at::TensorList, const std::optional<Tensor>&, double);
std::tuple<Tensor, Tensor> call_blend(at::TensorList xs, const std::optional<Tensor>& w, double s) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("refrain_fuzz::blend", "").typed<BlendType>();
  return op.call(xs, w, s);
}

void call_tally(Tensor& count, const Tensor& x) {
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("refrain_fuzz::tally_", "").typed<void(Tensor&, const Tensor&)>();
  op.call(count, x);
}

struct Noisy : Function<Noisy> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y = call_noisy(x);
    ctx->save_for_backward({x, y});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const auto saved = ctx->get_saved_variables();
    return {g[0] * (saved[1] / (saved[0].abs() + 0.5))};
  }
};

struct Blend : Function<Blend> {
  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, const std::optional<Tensor>& w,
                               double s) {
    at::AutoDispatchBelowADInplaceOrView below;
    const std::vector<Tensor> xs{a, b};
    auto [y, z] = call_blend(xs, w, s);
    ctx->save_for_backward({y, w.value_or(Tensor())});
    ctx->saved_data["s"] = s;
    return {y, z};
  }
  static variable_list backward(AutogradContext* ctx, variable_list g) {
    const auto saved = ctx->get_saved_variables();
    Tensor through = g[0].defined() ? g[0] : at::zeros_like(saved[0]);
    if (g[1].defined()) through = through + g[1] * saved[0].cos();
    if (saved[1].defined()) through = through * saved[1];
    return {through * ctx->saved_data["s"].toDouble(), through, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> blend_autograd(at::TensorList xs, const std::optional<Tensor>& w, double s) {
  auto out = Blend::apply(xs[0], xs[1], w, s);
  return {out[0], out[1]};
}

TORCH_LIBRARY(refrain_fuzz, m) {
  m.def("noisy(Tensor x) -> Tensor", {at::Tag::nondeterministic_seeded});
  m.def("blend(Tensor[] xs, Tensor? w, float s) -> (Tensor, Tensor)");
  m.def("tally_(Tensor(a!) count, Tensor x) -> ()");
}
TORCH_LIBRARY_IMPL(refrain_fuzz, CPU, m) {
  m.impl("noisy", noisy_cpu);
  m.impl("blend", blend_cpu);
  m.impl("tally_", tally_cpu);
}
TORCH_LIBRARY_IMPL(refrain_fuzz, Autograd, m) {
  m.impl("noisy", [](const Tensor& x) { return Noisy::apply(x); });
  m.impl("blend", blend_autograd);
  m.impl("tally_", torch::CppFunction::makeFallthrough());
}

void step_noisy(Machine& m) {
  auto x = m.pick(is_float);
  m.emit("refrain_fuzz::noisy", {x}, call_noisy(x->t));
}

void step_blend(Machine& m) {
  auto x = m.pick(is_float);
  auto like = [&](const Tensor& t) { return t.scalar_type() == x->t.scalar_type() && t.sizes() == x->t.sizes(); };
  auto y = m.pick(like);
  SlotPtr w = m.rng.chance(0.5) ? m.pick(like) : nullptr;
  const std::vector<Tensor> xs{x->t, y->t};
  auto [a, b] = call_blend(xs, w ? std::optional<Tensor>(w->t.detach()) : std::nullopt, 0.5);
  m.emit_some("refrain_fuzz::blend", {x, y, w}, {a, b});
}

void step_tally(Machine& m) {
  auto count = m.given("count");
  auto x = m.pick(is_float);
  call_tally(count->t, x->t.detach());
  m.wrote("refrain_fuzz::tally_", count, {x});
}

}  // namespace

std::vector<StepSpec> custom_steps() {
  return {{"function", 5, step_function},
          {"nest", 0.6, step_nest, "", Calls::kOnce},
          {"deep_nest", 0.03, step_deep_nest, "", Calls::kOnce},
          {"saves_first", 1, step_saves_first},
          {"scale_saved", 0.8, step_scale_saved},
          {"custom_noisy", 1.5, step_noisy},
          {"custom_blend", 1.5, step_blend},
          {"custom_tally", 0.7, step_tally, "count", Calls::kOnce}};
}

}  // namespace refrain::fuzz
