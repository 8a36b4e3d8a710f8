#include "machine.h"

/// Steps that look at the same bytes in another way, and steps that take or give lists of tensors or indices.
namespace refrain::fuzz {
namespace {

bool has_dims(const Tensor& t) { return is_numeric(t) && t.dim() > 0; }

void step_slice(Machine& m) {
  auto x = m.pick(has_dims);
  const int64_t d = m.rng.below(x->t.dim());
  const int64_t n = x->t.size(d);
  const int64_t start = m.rng.below(n);
  const int64_t step = 1 + m.rng.below(2);
  m.detail("dim=", d, " start=", start, " step=", step);
  m.emit("slice", {x}, x->t.slice(d, start, n, step));
}

void step_select(Machine& m) {
  auto x = m.pick(has_dims);
  const int64_t d = m.rng.below(x->t.dim());
  const int64_t i = m.rng.below(x->t.size(d));
  m.detail("dim=", d, " index=", i);
  m.emit("select", {x}, x->t.select(d, i));
}

void step_view(Machine& m) {
  auto x = m.pick(has_dims);
  switch (m.rng.below(7)) {
    case 0:
      return m.emit("transpose", {x}, x->t.transpose(0, -1));
    case 1:
      return m.emit("flatten", {x}, x->t.reshape({-1}));
    case 2:
      return m.emit("unsqueeze", {x}, x->t.unsqueeze(m.rng.below(x->t.dim() + 1)));
    case 3:
      return m.emit("squeeze", {x}, x->t.squeeze());
    case 4:
      return m.emit("movedim", {x}, x->t.movedim(0, x->t.dim() - 1));
    case 5:
      if (x->t.numel() % 2 != 0) throw Skip{};
      return m.emit("view_2", {x}, x->t.reshape({2, x->t.numel() / 2}));
    default:
      if (x->t.numel() % 4 != 0 || !x->t.is_contiguous()) throw Skip{};
      return m.emit("view_4", {x}, x->t.view({-1, 4}));
  }
}

void step_expand(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_numeric(t) && t.dim() < 4; });
  std::vector<int64_t> sizes{2};
  sizes.insert(sizes.end(), x->t.sizes().begin(), x->t.sizes().end());
  m.emit("expand", {x}, x->t.expand(sizes));
}

void step_strided(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.dim() >= 2 && t.is_contiguous() && t.numel() >= 6; });
  switch (m.rng.below(4)) {
    case 0:
      return m.emit("as_strided", {x}, x->t.as_strided({2, 2}, {2, 1}, x->t.storage_offset() + 1));
    case 1:
      return m.emit("as_strided_overlap", {x}, x->t.as_strided({2, 3}, {1, 1}, x->t.storage_offset()));
    case 2:
      return m.emit("diagonal", {x}, x->t.diagonal(0, 0, 1));
    default:
      if (x->t.size(-1) < 3) throw Skip{};
      return m.emit("unfold", {x}, x->t.unfold(-1, 2, 1));
  }
}

void step_detach(Machine& m) {
  auto x = m.pick(is_numeric);
  m.emit("detach", {x}, x->t.detach());
}

void step_bits(Machine& m) {
  if (m.rng.chance(0.3)) {
    auto x = m.pick(is_float);
    return m.emit("neg_view", {x}, at::_neg_view(x->t));
  }
  auto x = m.pick(is_complex);
  switch (m.rng.below(6)) {
    case 0:
      return m.emit("conj", {x}, x->t.conj());
    case 1:
      return m.emit("imag_of_conj", {x}, at::imag(x->t.conj()));
    case 2:
      return m.emit("real", {x}, at::real(x->t));
    case 3:
      return m.emit("view_as_real", {x}, at::view_as_real(x->t.resolve_conj()));
    case 4:
      return m.emit("resolve_conj", {x}, x->t.conj().resolve_conj());
    default:
      return m.emit("mul_conj", {x}, x->t * x->t.conj());
  }
}

// ---- lists ----

void step_split(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_numeric(t) && t.dim() > 0 && t.size(0) >= 2; });
  switch (m.rng.below(5)) {
    case 0:
      return m.emit_some("split", {x}, x->t.split(2, 0), 0.6);
    case 1:
      return m.emit_some("unbind", {x}, x->t.unbind(0), 0.5);
    case 2:
      return m.emit_some("chunk", {x}, x->t.chunk(2, -1), 0.6);
    case 3: {
      m.cut_unsafely(x->t);
      return m.emit_some("unsafe_split", {x}, at::unsafe_split(x->t, 2, 0), 0.6);
    }
    default:
      return m.emit_some("split_sizes", {x}, x->t.split_with_sizes({1, x->t.size(0) - 1}, 0), 0.6);
  }
}

void step_cat(Machine& m) {
  auto a = m.pick(has_dims);
  auto b = m.pick([&](const Tensor& t) { return t.sizes() == a->t.sizes(); });
  auto c = m.pick([&](const Tensor& t) { return t.sizes() == a->t.sizes(); });
  switch (m.rng.below(4)) {
    case 0:
      return m.emit("cat", {a, b, c}, at::cat({a->t, b->t, c->t}, 0));
    case 1:
      return m.emit("cat_self", {a, b}, at::cat({a->t, b->t, a->t}, -1));
    case 2:
      return m.emit("stack", {a, b}, at::stack({a->t, b->t}, 0));
    default: {
      const std::vector<Tensor> left{a->t, b->t};
      return m.emit_some("foreach_mul", {a, b}, at::_foreach_mul(left, 0.5), 0.7);
    }
  }
}

void step_index(Machine& m) {
  auto x = m.pick(has_dims);
  auto ix = m.pick([](const Tensor& t) { return is_index(t) && t.numel() <= 12; });
  const int64_t last = x->t.dim() - 1;
  const Tensor rows = ix->t.remainder(x->t.size(0));
  switch (m.rng.below(5)) {
    case 0:
      return m.emit("index", {x, ix}, x->t.index({rows}));
    case 1: {
      if (last == 0) throw Skip{};
      c10::List<std::optional<Tensor>> indices;
      indices.push_back(std::nullopt);
      indices.push_back(ix->t.remainder(x->t.size(1)));
      return m.emit("index_none", {x, ix}, at::index(x->t, indices));
    }
    case 2: {
      if (last == 0) throw Skip{};
      c10::List<std::optional<Tensor>> indices;
      indices.push_back(rows);
      indices.push_back(ix->t.remainder(x->t.size(1)));
      return m.emit("index_two", {x, ix}, at::index(x->t, indices));
    }
    case 3:
      return m.emit("index_select", {x, ix}, x->t.index_select(0, rows.reshape({-1})));
    default: {
      if (x->t.is_complex()) throw Skip{};
      const Tensor chosen = x->t.masked_select(x->t > 0.1);
      if (chosen.numel() == 0) throw Skip{};
      return m.emit("masked_select", {x}, chosen);
    }
  }
}

void step_gather(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && t.dim() > 0; });
  const Tensor ix = at::arange(x->t.numel(), at::kLong).reshape(x->t.sizes()).remainder(x->t.size(0));
  switch (m.rng.below(4)) {
    case 0:
      return m.emit("gather", {x}, x->t.gather(0, ix));
    case 1:
      return m.emit("scatter_value", {x}, x->t.scatter(0, ix, 0.5));
    case 2:
      return m.emit("take_along_dim", {x}, at::take_along_dim(x->t, at::argsort(x->t, -1, false), -1));
    default:
      return m.emit("scatter_add", {x}, x->t.scatter_add(0, ix, x->t * 0.3));
  }
}

void step_drop(Machine& m) {
  m.drop(m.pick([](const Tensor&) { return true; }));
}

}  // namespace

std::vector<StepSpec> view_steps() {
  return {{"slice", 4, step_slice},   {"select", 3, step_select},   {"view", 6, step_view},
          {"expand", 2, step_expand}, {"strided", 3, step_strided}, {"detach", 1, step_detach},
          {"bits", 4, step_bits},     {"split", 3, step_split},     {"cat", 4, step_cat},
          {"index", 4, step_index},   {"gather", 2, step_gather},   {"drop", 7, step_drop}};
}

}  // namespace refrain::fuzz
