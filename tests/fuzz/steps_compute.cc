#include "machine.h"

/// Steps that make a new tensor element by element, by reduction, or from nothing.
namespace refrain::fuzz {
namespace {

Tensor unary(int64_t which, const Tensor& x) {
  switch (which) {
    case 0:
      return x.neg();
    case 1:
      return x.abs();
    case 2:
      return x.clamp(-3, 2).exp();
    case 3:
      return (x.abs() + 1).log();
    case 4:
      return x.sin();
    case 5:
      return x.cos();
    case 6:
      return x.tanh();
    case 7:
      return x.sigmoid();
    case 8:
      return x.relu();
    case 9:
      return at::gelu(x);
    case 10:
      return at::silu(x);
    case 11:
      return at::softplus(x);
    case 12:
      return at::elu(x);
    case 13:
      return at::leaky_relu(x, 0.1);
    case 14:
      return (x.abs() + 0.1).sqrt();
    case 15:
      return (x.abs() + 0.5).rsqrt();
    case 16:
      return (x.abs() + 0.5).reciprocal();
    case 17:
      return x.square().tanh();
    case 18:
      return x.erf();
    case 19:
      return at::hardtanh(x);
    case 20:
      return x.sign();
    case 21:
      return at::mish(x);
    case 22:
      return x.contiguous().clone();
    case 23:
      return at::log_sigmoid(x);
    default:
      return at::hardswish(x);
  }
}

const char* const kUnaryNames[] = {"neg",     "abs",   "exp",         "log",      "sin",      "cos",      "tanh",
                                   "sigmoid", "relu",  "gelu",        "silu",     "softplus", "elu",      "leaky_relu",
                                   "sqrt",    "rsqrt", "reciprocal",  "square",   "erf",      "hardtanh", "sign",
                                   "mish",    "clone", "log_sigmoid", "hardswish"};

void step_unary(Machine& m) {
  auto x = m.pick(is_float);
  const int64_t which = m.rng.below(25);
  m.emit(kUnaryNames[which], {x}, unary(which, x->t));
}

void step_complex_unary(Machine& m) {
  auto x = m.pick(is_complex);
  switch (m.rng.below(6)) {
    case 0:
      return m.emit("sin", {x}, x->t.sin());
    case 1:
      return m.emit("abs", {x}, x->t.abs());
    case 2:
      return m.emit("mul_i", {x}, x->t * c10::complex<double>(0.5, 0.5));
    case 3:
      return m.emit("tanh", {x}, (x->t * 0.3).tanh());
    case 4:
      return m.emit("angle", {x}, x->t.angle());
    default:
      return m.emit("conj_physical", {x}, x->t.conj_physical());
  }
}

void step_scalar(Machine& m) {
  auto x = m.pick(is_numeric);
  const double c = m.rng.uniform() * 2 - 0.7;
  m.detail("c=", c);
  switch (m.rng.below(5)) {
    case 0:
      return m.emit("mul_scalar", {x}, x->t * c);
    case 1:
      return m.emit("add_scalar", {x}, x->t + c);
    case 2:
      return m.emit("rsub_scalar", {x}, c - x->t);
    case 3:
      return m.emit("div_scalar", {x}, x->t / (c + 2));
    default:
      return m.emit("pow2", {x}, (x->t * 0.5).pow(2));
  }
}

void step_binary(Machine& m) {
  auto a = m.pick(is_numeric);
  auto b = m.pick([&](const Tensor& t) { return is_numeric(t) && broadcast_together(a->t, t); });
  const bool complex = a->t.is_complex() || b->t.is_complex();
  switch (m.rng.below(complex ? 4 : 8)) {
    case 0:
      return m.emit("add", {a, b}, at::add(a->t, b->t, 0.5));
    case 1:
      return m.emit("sub", {a, b}, a->t - b->t);
    case 2:
      return m.emit("mul", {a, b}, a->t * b->t);
    case 3:
      return m.emit("div", {a, b}, a->t / (b->t.abs() + 1));
    case 4:
      return m.emit("maximum", {a, b}, at::maximum(a->t, b->t));
    case 5:
      return m.emit("atan2", {a, b}, at::atan2(a->t, b->t.abs() + 0.1));
    case 6:
      return m.emit("mul_tanh", {a, b}, (a->t * b->t).tanh());
    default:
      return m.emit("hypot", {a, b}, at::hypot(a->t, b->t + 0.01));
  }
}

void step_ternary(Machine& m) {
  auto a = m.pick(is_float);
  auto like = [&](const Tensor& t) { return t.scalar_type() == a->t.scalar_type() && broadcasts_to(t, a->t.sizes()); };
  auto b = m.pick(like);
  auto c = m.pick(like);
  switch (m.rng.below(4)) {
    case 0:
      return m.emit("where", {a, b, c}, at::where(a->t > 0, b->t, c->t));
    case 1:
      return m.emit("addcmul", {a, b, c}, at::addcmul(a->t, b->t, c->t, 0.5));
    case 2:
      return m.emit("lerp", {a, b, c}, at::lerp(a->t, b->t, c->t.sigmoid()));
    default:
      return m.emit("addcdiv", {a, b, c}, at::addcdiv(a->t, b->t, c->t.abs() + 1));
  }
}

void step_reduce(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.dim() > 0; });
  const int64_t d = m.rng.below(x->t.dim());
  const bool keep = m.rng.chance(0.6);
  m.detail("dim=", d);
  switch (m.rng.below(9)) {
    case 0:
      return m.emit("sum", {x}, x->t.sum({d}, keep));
    case 1:
      return m.emit("mean", {x}, x->t.mean({d}, keep));
    case 2:
      return m.emit("var", {x}, x->t.var(at::OptionalIntArrayRef({d}), 0, keep));
    case 3:
      return m.emit("norm", {x}, (x->t + 0.01).norm(2, {d}, keep));
    case 4:
      return m.emit("prod", {x}, x->t.tanh().prod(d, keep));
    case 5:
      return m.emit("amax", {x}, x->t.amax({d}, keep));
    case 6:
      return m.emit("logsumexp", {x}, x->t.logsumexp({d}, keep));
    case 7:
      return m.emit("cumsum", {x}, x->t.cumsum(d));
    default:
      return m.emit("sum_all", {x}, x->t.mean());
  }
}

void step_softmax(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.dim() > 0; });
  switch (m.rng.below(3)) {
    case 0:
      return m.emit("softmax", {x}, at::softmax(x->t, -1));
    case 1:
      return m.emit("log_softmax", {x}, at::log_softmax(x->t, 0));
    default:
      return m.emit("glu_gelu", {x}, at::gelu(x->t, "tanh"));
  }
}

void step_rearrange(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_numeric(t) && t.dim() >= 2; });
  switch (m.rng.below(5)) {
    case 0:
      return m.emit("flip", {x}, x->t.flip({0}));
    case 1:
      return m.emit("roll", {x}, x->t.roll(1, 1));
    case 2:
      return m.emit("tril", {x}, x->t.tril());
    case 3:
      return m.emit("repeat_interleave", {x}, x->t.repeat_interleave(2, 0));
    default:
      return m.emit("pad", {x}, at::constant_pad_nd(x->t, {1, 0}, 0.5));
  }
}

void step_cast(Machine& m) {
  auto x = m.pick(is_float);
  switch (m.rng.below(6)) {
    case 0:
      return m.emit("to_double", {x}, x->t.to(at::kDouble));
    case 1:
      return m.emit("to_float", {x}, x->t.to(at::kFloat));
    case 2:
      return m.emit("to_bfloat16_and_back", {x}, x->t.to(at::kBFloat16).to(at::kFloat));
    case 3:
      return m.emit("to_complex", {x}, at::complex(x->t.to(at::kFloat), x->t.to(at::kFloat).sin()));
    case 4:
      return m.emit("to_long", {x}, (x->t.detach().abs() * 5).clamp(0, 11).nan_to_num().to(at::kLong));
    default:
      return m.emit("to_bfloat16", {x}, x->t.to(at::kBFloat16));
  }
}

/// A number that leaves the tensors and comes back.
void step_item(Machine& m) {
  auto a = m.pick(is_float);
  auto b = m.pick(is_float);
  const double c = std::tanh(b->t.detach().to(at::kDouble).mean().item<double>());
  m.emit("mul_item_of", {a, b}, a->t * (std::isfinite(c) ? c : 0.25));
}

void step_constant(Machine& m) {
  const auto options = at::TensorOptions().dtype(m.rng.chance(0.8) ? at::kFloat : at::kDouble);
  switch (m.rng.below(6)) {
    case 0:
      return m.emit("arange", {}, at::arange(4, options) / 3);
    case 1:
      return m.emit("full", {}, at::full({3, 4}, 0.3, options));
    case 2:
      return m.emit("ones", {}, at::ones({2, 3, 4}, options));
    case 3:
      return m.emit("zeros", {}, at::zeros({4, 4}, options));
    case 4:
      return m.emit("scalar_tensor", {}, at::scalar_tensor(0.7, options));
    default:
      return m.emit("arange_long", {}, at::arange(3, at::kLong));
  }
}

// ---- random numbers ----

void step_dropout(Machine& m) {
  auto x = m.pick(is_float);
  switch (m.rng.below(4)) {
    case 0:
      return m.emit("dropout", {x}, at::dropout(x->t, 0.3, true));
    case 1:
      return m.emit_some("native_dropout", {x}, {std::get<0>(at::native_dropout(x->t, 0.4, true))}, 1.0);
    case 2:
      return m.emit("alpha_dropout", {x}, at::alpha_dropout(x->t, 0.2, true));
    default:
      if (x->t.dim() < 2) throw Skip{};
      return m.emit("feature_dropout", {x}, at::feature_dropout(x->t, 0.3, true));
  }
}

void step_rrelu(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble; });
  m.emit("rrelu", {x}, at::rrelu(x->t, 0.1, 0.4, true));
}

void step_rrelu_noise(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble; });
  Tensor noise = at::empty_like(x->t.detach());
  Tensor y = at::rrelu_with_noise(x->t, noise, 0.1, 0.4, true);
  m.emit_some("rrelu_with_noise", {x}, {y, noise}, 0.8);
}

void step_random(Machine& m) {
  auto& own = m.generators[static_cast<size_t>(m.rng.below(2))];
  auto x = m.pick(is_float);
  const auto f32 = at::TensorOptions().dtype(at::kFloat);
  switch (m.rng.below(10)) {
    case 0:
      return m.emit("bernoulli_own", {x}, x->t * at::bernoulli(x->t.detach().sigmoid().nan_to_num(), own));
    case 1:
      return m.emit("bernoulli", {x}, x->t * at::bernoulli(x->t.detach().sigmoid().nan_to_num()));
    case 2:
      return m.emit("rand_like", {x}, x->t * at::rand_like(x->t.detach()));
    case 3:
      return m.emit("randn_own", {}, at::randn({3, 4}, own, f32));
    case 4:
      return m.emit("randn", {}, at::randn({4}, f32));
    case 5:
      return m.emit("normal_own", {x}, at::normal(x->t.detach().to(at::kFloat), 0.5, own));
    case 6:
      return m.emit("randint_own", {}, at::randint(0, 12, {3}, own, at::TensorOptions().dtype(at::kLong)));
    case 7:
      return m.emit("randperm", {}, at::randperm(4));
    case 8:
      return m.emit("randn_like_mul", {x}, x->t * at::randn_like(x->t.detach()));
    default: {
      Tensor noise = at::empty_like(x->t.detach(), at::kFloat);
      noise.exponential_(1.0, own);
      return m.emit("exponential_own", {x}, x->t * noise.clamp_max(3));
    }
  }
}

}  // namespace

std::vector<StepSpec> compute_steps() {
  return {{"unary", 11, step_unary},      {"complex_unary", 2, step_complex_unary},
          {"scalar", 5, step_scalar},     {"binary", 11, step_binary},
          {"ternary", 3, step_ternary},   {"reduce", 4, step_reduce},
          {"softmax", 2, step_softmax},   {"rearrange", 2, step_rearrange},
          {"cast", 3, step_cast},         {"item", 1, step_item},
          {"constant", 2, step_constant}, {"dropout", 2.5, step_dropout},
          {"rrelu", 1, step_rrelu},       {"rrelu_noise", 1, step_rrelu_noise},
          {"random", 4, step_random}};
}

}  // namespace refrain::fuzz
