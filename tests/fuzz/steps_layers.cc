#include "machine.h"

/// Steps that are layers: products, normalisation, recurrence, losses, and operators with several outputs.
namespace refrain::fuzz {
namespace {

auto same_type_matrix(const SlotPtr& a, int64_t rows) {
  return [a, rows](const Tensor& t) {
    return t.scalar_type() == a->t.scalar_type() && t.dim() == 2 && t.size(0) == rows && t.numel() > 0;
  };
}

bool is_last4(const Tensor& t) { return is_single(t) && t.dim() >= 2 && t.size(-1) == 4; }

void step_mm(Machine& m) {
  auto a = m.pick([](const Tensor& t) { return is_numeric(t) && t.dim() == 2; });
  auto b = m.pick_if_any(same_type_matrix(a, a->t.size(1)));
  if (b) return m.emit("mm", {a, b}, a->t.mm(b->t).tanh());
  m.emit("mm_self", {a}, a->t.mm(a->t.t()) * 0.3);
}

void step_bmm(Machine& m) {
  auto a = m.pick([](const Tensor& t) { return is_float(t) && t.dim() == 3; });
  auto b = m.pick_if_any([&](const Tensor& t) {
    return t.dim() == 3 && t.size(0) == a->t.size(0) && t.size(1) == a->t.size(2) &&
           t.scalar_type() == a->t.scalar_type();
  });
  if (b) return m.emit("bmm", {a, b}, a->t.bmm(b->t));
  m.emit("bmm_self", {a}, a->t.bmm(a->t.transpose(1, 2)).softmax(-1));
}

void step_addmm(Machine& m) {
  auto a = m.pick([](const Tensor& t) { return is_float(t) && t.dim() == 2; });
  auto b = m.pick(same_type_matrix(a, a->t.size(1)));
  auto c = m.pick([&](const Tensor& t) {
    return t.scalar_type() == a->t.scalar_type() && broadcasts_to(t, {a->t.size(0), b->t.size(1)});
  });
  m.emit("addmm", {c, a, b}, at::addmm(c->t, a->t, b->t, 0.5, 0.7));
}

void step_einsum(Machine& m) {
  auto a = m.pick([](const Tensor& t) { return is_float(t) && t.dim() == 3; });
  m.emit("einsum", {a}, at::einsum("bij,bkj->ik", {a->t, a->t}) * 0.2);
}

void step_linear(Machine& m) {
  auto x = m.pick(is_last4);
  auto w = m.given("linear.weight");
  auto b = m.given("linear.bias");
  if (m.rng.chance(0.3)) return m.emit("linear_no_bias", {x, w}, at::linear(x->t, w->t));
  m.emit("linear", {x, w, b}, at::linear(x->t, w->t, b->t));
}

bool is_image(const Tensor& t) {
  return is_single(t) && t.dim() == 4 && t.size(1) == 3 && t.size(2) > 1 && t.size(3) > 1;
}

void step_conv(Machine& m) {
  auto w = m.given("conv.weight");
  auto x = m.pick(is_image);
  m.emit("conv2d", {x, w}, at::conv2d(x->t, w->t, {}, 1, 1));
}

void step_pool(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.dim() == 4 && t.size(2) >= 2 && t.size(3) >= 2; });
  switch (m.rng.below(3)) {
    case 0: {
      auto [y, index] = at::max_pool2d_with_indices(x->t, {2, 2}, {1, 1});
      return m.emit_some("max_pool2d", {x}, {y, index}, 0.8);
    }
    case 1:
      return m.emit("avg_pool2d", {x}, at::avg_pool2d(x->t, {2, 2}, {1, 1}));
    default:
      return m.emit("upsample", {x}, at::upsample_nearest2d(x->t, at::IntArrayRef{5, 5}));
  }
}

void step_attention(Machine& m) {
  auto q = m.pick([](const Tensor& t) { return is_single(t) && t.dim() == 3 && t.size(2) > 1; });
  auto like = [&](const Tensor& t) {
    return t.dim() == 3 && t.scalar_type() == q->t.scalar_type() && t.sizes() == q->t.sizes();
  };
  auto k = m.pick(like);
  auto v = m.pick(like);
  const double p = m.rng.chance(0.3) ? 0.2 : 0.0;
  const bool causal = m.rng.chance(0.5);
  m.detail("dropout=", p, " causal=", causal);
  auto heads = [](const SlotPtr& s) { return s->t.unsqueeze(1); };
  m.emit("sdpa", {q, k, v}, at::scaled_dot_product_attention(heads(q), heads(k), heads(v), {}, p, causal).squeeze(1));
}

void step_layer_norm(Machine& m) {
  auto w = m.given("norm.weight");
  auto b = m.given("norm.bias");
  auto x = m.pick(is_last4);
  if (m.rng.chance(0.5)) return m.emit("layer_norm", {x, w, b}, at::layer_norm(x->t, {4}, w->t, b->t));
  auto [y, mean, rstd] = at::native_layer_norm(x->t, {4}, w->t, b->t, 1e-5);
  m.emit_some("native_layer_norm", {x, w, b}, {y, mean, rstd});
}

void step_group_norm(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() >= 3 && t.size(1) == 4; });
  m.emit("group_norm", {x}, at::group_norm(x->t, 2));
}

void step_batch_norm(Machine& m) {
  auto x = m.pick([](const Tensor& t) {
    return is_single(t) && t.dim() >= 2 && t.dim() <= 4 && (t.size(1) == 3 || t.size(1) == 4) && t.numel() > t.size(1);
  });
  const std::string c = std::to_string(x->t.size(1));
  auto mean = m.given("mean" + c);
  auto var = m.given("var" + c);
  auto count = m.given("count");
  const bool training = m.rng.chance(0.85);
  m.detail("training=", training);
  if (training) count->t.add_(1);
  Tensor w = c == "4" ? m.given("norm.weight")->t : Tensor();
  m.emit("batch_norm", {x, mean, var}, at::batch_norm(x->t, w, {}, mean->t, var->t, training, 0.2, 1e-5, false));
}

void step_lstm(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() == 3 && t.size(2) == 4; });
  std::vector<Tensor> weights;
  for (const char* name : {"lstm.w_ih", "lstm.w_hh", "lstm.b_ih", "lstm.b_hh"}) weights.push_back(m.given(name)->t);
  const Tensor zero = at::zeros({1, x->t.size(1), 4});
  const std::vector<Tensor> state{zero, zero};
  auto [y, h, c] = at::lstm(x->t, state, weights, true, 1, 0.0, true, false, false);
  m.emit_some("lstm", {x}, {y, h, c});
}

void step_embedding(Machine& m) {
  auto table = m.given("table");
  auto ix = m.pick(is_index);
  m.emit("embedding", {table, ix}, at::embedding(table->t, ix->t.remainder(12)));
}

void step_loss(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() == 2; });
  if (m.rng.chance(0.5)) {
    auto y = m.pick([&](const Tensor& t) { return t.scalar_type() == at::kFloat && t.sizes() == x->t.sizes(); });
    return m.emit("mse_loss", {x, y}, at::mse_loss(x->t, y->t.detach()));
  }
  const Tensor target = at::arange(x->t.size(0), at::kLong).remainder(x->t.size(1));
  m.emit("cross_entropy", {x}, at::cross_entropy_loss(x->t, target));
}

void step_linalg(Machine& m) {
  auto x = m.pick([](const Tensor& t) {
    return (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble) && t.dim() == 2 && t.numel() > 0;
  });
  const Tensor square = x->t.tanh().mm(x->t.tanh().t()).nan_to_num() + at::eye(x->t.size(0), x->t.options());
  if (m.rng.chance(0.5)) return m.emit("cholesky", {x}, at::linalg_cholesky(square));
  m.emit("inv", {x}, at::linalg_inv(square));
}

void step_multi(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.dim() > 0 && t.size(-1) >= 2; });
  switch (m.rng.below(9)) {
    case 0: {
      auto [v, i] = x->t.max(-1);
      return m.emit_some("max_dim", {x}, {v, i});
    }
    case 1: {
      auto [v, i] = x->t.sort(-1);
      return m.emit_some("sort", {x}, {v, i});
    }
    case 2: {
      auto [v, i] = x->t.topk(2);
      return m.emit_some("topk", {x}, {v, i});
    }
    case 3: {
      auto [s, mean] = at::std_mean(x->t + 0.01 * at::arange(x->t.size(-1)), at::OptionalIntArrayRef({-1}), 0, true);
      return m.emit_some("std_mean", {x}, {s, mean});
    }
    case 4: {
      auto [v, mean] = at::var_mean(x->t, at::OptionalIntArrayRef({0}), 0, true);
      return m.emit_some("var_mean", {x}, {v, mean});
    }
    case 5: {
      auto [v, i] = x->t.cummax(-1);
      return m.emit_some("cummax", {x}, {v, i});
    }
    case 6: {
      auto [v, i] = x->t.kthvalue(1, -1, true);
      return m.emit_some("kthvalue", {x}, {v, i});
    }
    case 7: {
      auto [lo, hi] = x->t.aminmax(-1, true);
      return m.emit_some("aminmax", {x}, {lo, hi});
    }
    default: {
      auto [v, i] = x->t.min(0);
      return m.emit_some("min_dim", {x}, {v, i});
    }
  }
}

}  // namespace

std::vector<StepSpec> layer_steps() {
  return {{"mm", 3, step_mm},
          {"bmm", 1.5, step_bmm},
          {"addmm", 1.5, step_addmm},
          {"einsum", 0.5, step_einsum},
          {"linear", 2, step_linear, "linear.weight,linear.bias"},
          {"conv", 1.5, step_conv, "conv.weight"},
          {"pool", 1.5, step_pool},
          {"attention", 2, step_attention},
          {"layer_norm", 2, step_layer_norm, "norm.weight,norm.bias"},
          {"group_norm", 1, step_group_norm},
          {"batch_norm", 3, step_batch_norm, "mean3,var3,mean4,var4,count,norm.weight", Calls::kOnce},
          {"lstm", 1, step_lstm, "lstm.w_ih,lstm.w_hh,lstm.b_ih,lstm.b_hh"},
          {"embedding", 1, step_embedding, "table"},
          {"loss", 1, step_loss},
          {"linalg", 0.6, step_linalg},
          {"multi_output", 6, step_multi}};
}

}  // namespace refrain::fuzz
