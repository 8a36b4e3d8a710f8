#include "machine.h"

/// Steps that write: in place on bases and views, into buffers, through raw pointers, behind autograd's back.
namespace refrain::fuzz {
namespace {

SlotPtr source_for(Machine& m, const Tensor& target) {
  return m.pick([&](const Tensor& t) {
    return is_float(t) && broadcasts_to(t, target.sizes()) && (!share_storage(t, target) || t.is_same(target));
  });
}

void write_unary(Machine& m, const SlotPtr& slot, Tensor t) {
  switch (m.rng.below(8)) {
    case 0:
      t.relu_();
      return m.wrote("relu_", slot);
    case 1:
      t.sigmoid_();
      return m.wrote("sigmoid_", slot);
    case 2:
      t.tanh_();
      return m.wrote("tanh_", slot);
    case 3:
      t.mul_(0.7);
      return m.wrote("mul_scalar_", slot);
    case 4:
      t.add_(0.3);
      return m.wrote("add_scalar_", slot);
    case 5:
      t.clamp_(-1, 1);
      return m.wrote("clamp_", slot);
    case 6:
      t.neg_();
      return m.wrote("neg_", slot);
    default:
      at::leaky_relu_(t, 0.2);
      return m.wrote("leaky_relu_", slot);
  }
}

void step_inplace(Machine& m) {
  auto x = m.pick_to_write();
  write_unary(m, x, m.writable(x));
}

/// A view that only this step knows.
void step_inplace_on_view(Machine& m) {
  auto x = m.pick_to_write([](const Tensor& t) { return t.dim() >= 1 && t.size(0) >= 2; });
  Tensor& base = m.writable(x);
  const int64_t i = m.rng.below(base.size(0));
  m.detail("through a view, index ", i);
  Tensor view = m.rng.chance(0.5) ? base.select(0, i) : base.slice(0, 0, i + 1);
  if (m.rng.chance(0.5)) return write_unary(m, x, view);
  auto y = source_for(m, view);
  if (y == x) throw Skip{};
  if (m.rng.chance(0.5)) {
    view.copy_(y->t);
    return m.wrote("view.copy_", x, {y});
  }
  view.add_(y->t, 0.5);
  m.wrote("view.add_", x, {y});
}

void step_inplace_binary(Machine& m) {
  auto x = m.pick_to_write();
  auto y = source_for(m, x->t);
  if (y == x) throw Skip{};
  const Tensor other = y->t;
  Tensor& t = m.writable(x);
  switch (m.rng.below(6)) {
    case 0:
      t.add_(other, 0.5);
      return m.wrote("add_", x, {y});
    case 1:
      t.mul_(other);
      return m.wrote("mul_", x, {y});
    case 2:
      t.sub_(other);
      return m.wrote("sub_", x, {y});
    case 3:
      t.copy_(other);
      return m.wrote("copy_", x, {y});
    case 4:
      t.addcmul_(other, other, 0.3);
      return m.wrote("addcmul_", x, {y});
    default:
      t.div_(other.abs() + 1);
      return m.wrote("div_", x, {y});
  }
}

/// Aliased arguments. With gradients plain autograd makes a cycle here, and leaks unless backward comes by.
void step_inplace_self(Machine& m) {
  const bool grad = m.rng.chance(0.15);
  auto x = m.pick_to_write([&](const Tensor& t) { return t.requires_grad() == grad; });
  Tensor& t = m.writable(x);
  if (grad) m.made_cycle();
  switch (m.rng.below(3)) {
    case 0:
      t.mul_(t);
      return m.wrote("mul_self_", x);
    case 1:
      t.add_(t, 0.5);
      return m.wrote("add_self_", x);
    default:
      t.addcmul_(t, t, 0.3);
      return m.wrote("addcmul_self_", x);
  }
}

void step_overwrite(Machine& m) {
  auto x = m.pick_to_write();
  Tensor& t = m.writable(x);
  switch (m.rng.below(4)) {
    case 0:
      t.fill_(0.4);
      return m.wrote("fill_", x);
    case 1:
      t.zero_();
      return m.wrote("zero_", x);
    case 2:
      t.masked_fill_(t.detach() > 0.2, 0.1);
      return m.wrote("masked_fill_", x);
    default:
      t.normal_(0, 0.5, m.generators[0]);
      return m.wrote("normal_own_", x);
  }
}

void step_inplace_index(Machine& m) {
  auto x = m.pick_to_write([](const Tensor& t) { return t.dim() >= 1; });
  Tensor& t = m.writable(x);
  const Tensor rows = at::arange(2, at::kLong).remainder(t.size(0));
  const Tensor value = at::full({1}, 0.6, t.options().requires_grad(false));
  c10::List<std::optional<Tensor>> indices;
  switch (m.rng.below(5)) {
    case 0:
      indices.push_back(rows);
      t.index_put_(indices, value, true);
      return m.wrote("index_put_accumulate_", x);
    case 1:
      if (t.dim() < 2) throw Skip{};
      indices.push_back(std::nullopt);
      indices.push_back(at::zeros({1}, at::kLong));
      t.index_put_(indices, value);
      return m.wrote("index_put_none_", x);
    case 2:
      t.index_fill_(0, rows, 0.2);
      return m.wrote("index_fill_", x);
    case 3:
      t.scatter_(0, at::zeros_like(t, at::kLong), 0.3);
      return m.wrote("scatter_", x);
    default:
      t.index_add_(0, rows, t.detach().index_select(0, rows));
      return m.wrote("index_add_", x);
  }
}

void step_inplace_random(Machine& m) {
  auto x = m.pick_to_write([](const Tensor& t) { return t.scalar_type() != at::kBFloat16; });
  Tensor& t = m.writable(x);
  switch (m.rng.below(4)) {
    case 0:
      at::dropout_(t, 0.3, true);
      return m.wrote("dropout_", x);
    case 1:
      at::rrelu_(t, 0.1, 0.4, true);
      return m.wrote("rrelu_", x);
    case 2:
      t.uniform_(-1, 1, m.generators[1]);
      return m.wrote("uniform_own_", x);
    default:
      t.bernoulli_(0.5);
      return m.wrote("bernoulli_", x);
  }
}

/// Other sizes and strides, same bytes.
void step_inplace_shape(Machine& m) {
  auto x = m.pick_to_write([](const Tensor& t) { return t.dim() == 2 && !t.is_leaf() && !t.is_view(); });
  m.reshaped();
  switch (m.rng.below(3)) {
    case 0:
      x->t.t_();
      return m.wrote("t_", x);
    case 1:
      x->t.unsqueeze_(0);
      return m.wrote("unsqueeze_", x);
    default:
      x->t.transpose_(0, 1);
      return m.wrote("transpose_", x);
  }
}

/// `out=` writes, also into a tensor of the wrong size.
void step_out(Machine& m) {
  auto a = m.pick(is_single);
  auto b = m.pick([&](const Tensor& t) { return is_single(t) && broadcast_together(a->t, t); });
  const Tensor x = a->t.detach();
  const Tensor y = b->t.detach();
  if (m.rng.chance(0.4)) {
    Tensor out = at::empty({0}, at::kFloat);
    at::mul_out(out, x, y);
    return m.emit("mul_out_grown", {a, b}, out);
  }
  Tensor out = at::empty_like(x + y);
  at::sub_out(out, x, y);
  if (m.rng.chance(0.5)) at::exp_out(out, out.clamp(-2, 2));
  m.emit("sub_out", {a, b}, out);
}

// ---- buffers ----

void step_counter(Machine& m) {
  auto count = m.given("count");
  count->t.add_(1);
  m.wrote("add_", count);
}

void step_average(Machine& m) {
  auto average = m.given("average");
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() >= 1 && t.size(-1) == 4; });
  at::NoGradGuard no_grad;
  if (x == average) throw Skip{};
  average->t.lerp_(x->t.reshape({-1, 4}).mean(0), 0.1);
  m.wrote("lerp_mean_of", average, {x});
}

void step_cache(Machine& m) {
  auto cache = m.given("cache");
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() == 2 && t.size(1) == 4 && t.size(0) <= 6; });
  if (share_storage(x->t, cache->t)) throw Skip{};
  {
    at::NoGradGuard no_grad;
    cache->t.slice(0, 0, x->t.size(0)).copy_(x->t);
  }
  m.emit("read_of_cache_with", {cache, x}, cache->t.clone());
}

void step_foreach(Machine& m) {
  auto average = m.given("average");
  auto mean = m.given("mean4");
  at::NoGradGuard no_grad;
  const std::vector<Tensor> tensors{average->t, mean->t};
  at::_foreach_mul_(tensors, 0.9);
  m.wrote("foreach_mul_ with mean4", average);
}

// ---- bytes that no operator wrote ----

void fill_raw(Machine& m, const Tensor& t, uint64_t seed) {
  Rng values(seed);
  float* data = m.pointer_to(t);
  for (int64_t i = 0; i < t.numel(); ++i) data[i] = static_cast<float>(values.uniform() - 0.3);
}

std::vector<int64_t> raw_sizes(Machine& m) {
  static const std::vector<std::vector<int64_t>> sizes = {{4}, {3, 4}, {4, 4}, {2, 3, 4}};
  return sizes[static_cast<size_t>(m.rng.below(4))];
}

void step_empty_raw(Machine& m) {
  Tensor t = at::empty(raw_sizes(m), at::kFloat);
  if (m.rng.chance(0.3)) t = at::empty_like(t);
  fill_raw(m, t, m.rng.next());
  m.emit("empty_filled_raw", {}, t);
}

void step_zeros_raw(Machine& m) {
  Tensor t = at::zeros(raw_sizes(m), at::kFloat);
  fill_raw(m, t, m.rng.next());
  m.emit("zeros_filled_raw", {}, t);
}

void step_empty_rows(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() == 2 && t.size(0) <= 4; });
  Tensor t = at::empty(x->t.sizes(), x->t.options().requires_grad(false));
  for (int64_t i = 0; i < t.size(0); ++i) t.select(0, i).copy_(x->t.select(0, i) * 0.5);
  m.emit("empty_filled_by_rows_of", {x}, t);
}

void step_empty_filled(Machine& m) {
  Tensor t = at::empty(raw_sizes(m), at::kFloat);
  switch (m.rng.below(3)) {
    case 0:
      t.fill_(0.25);
      return m.emit("empty_fill_", {}, t);
    case 1:
      t.normal_();
      return m.emit("empty_normal_", {}, t);
    default:
      t.uniform_(0, 1, m.generators[1]);
      return m.emit("empty_uniform_own_", {}, t);
  }
}

// ---- behind autograd's back ----

/// Another version counter: autograd reads the new bytes without a word.
void step_data_write(Machine& m) {
  auto x =
      m.pick([&](const Tensor& t) { return is_float(t) && !may_overlap(t) && !t.is_neg() && !m.known_to_rerun(t); });
  x->t.variable_data().mul_(1.25);
  m.wrote("variable_data().mul_", x);
}

/// What an optimizer does, in the middle of a program.
void step_leaf_update(Machine& m) {
  auto leaf = m.given_leaf();
  if (!m.may_write(leaf->t)) throw Skip{};
  at::NoGradGuard no_grad;
  if (m.rng.chance(0.3) || leaf->t.is_complex() || m.known_to_rerun(leaf->t)) {
    leaf->t.mul_(0.9);
    return m.wrote("mul_ under no_grad", leaf);
  }
  if (leaf->t.scalar_type() != at::kFloat) throw Skip{};
  const std::vector<Tensor> weights{leaf->t};
  const std::vector<Tensor> gradients{at::ones_like(leaf->t)};
  at::_fused_sgd_(weights, gradients, {}, 0.0, 0.0, 0.05, 0.0, false, false, true);
  m.wrote("fused_sgd_", leaf);
}

/// A gradient penalty: backward inside forward.
void step_inner_grad(Machine& m) {
  auto y = m.pick([](const Tensor& t) { return is_float(t) && t.requires_grad() && !t.is_leaf(); });
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.requires_grad() && t.is_leaf(); });
  if (!at::GradMode::is_enabled()) throw Skip{};
  const bool create = m.rng.chance(0.5);
  m.detail("create_graph=", create);
  std::vector<Tensor> gradients;
  try {
    gradients = torch::autograd::grad({y->t.sum()}, {x->t}, {}, true, create, true);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error& error) {
    throw Refused(std::string(refrain::is_recomputing() ? kInnerGradAgain : "inner grad: ") +
                  error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw Refused(std::string("inner grad: ") + error.what());
  }
  if (gradients[0].defined() && gradients[0].is_sparse()) throw Skip{};
  m.emit_some("grad_of_sum", {y, x}, gradients, 1.0);
}

}  // namespace

std::vector<StepSpec> write_steps() {
  return {{"inplace", 4, step_inplace},
          {"inplace_on_view", 3, step_inplace_on_view},
          {"inplace_binary", 4, step_inplace_binary},
          {"inplace_self", 1, step_inplace_self},
          {"overwrite", 2, step_overwrite},
          {"inplace_index", 2, step_inplace_index},
          {"inplace_random", 1.5, step_inplace_random},
          {"inplace_shape", 1, step_inplace_shape},
          {"out", 1.5, step_out},
          {"counter", 1.5, step_counter, "count", Calls::kOnce},
          {"average", 1, step_average, "average", Calls::kOnce},
          {"cache", 1, step_cache, "cache", Calls::kOnce},
          {"foreach", 0.7, step_foreach, "average,mean4", Calls::kOnce},
          {"empty_raw", 2, step_empty_raw},
          {"zeros_raw", 1, step_zeros_raw},
          {"empty_rows", 1, step_empty_rows},
          {"empty_filled", 1, step_empty_filled},
          {"data_write", 0.6, step_data_write, "", Calls::kOnce},
          {"leaf_update", 0.5, step_leaf_update, "", Calls::kOnce},
          {"inner_grad", 0.8, step_inner_grad}};
}

}  // namespace refrain::fuzz
