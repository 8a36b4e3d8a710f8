#include <ATen/Parallel.h>

#include <sstream>

#include "machine.h"

/// Steps that go past LibTorch's operators: raw pointers, memory of the program's own, streams, and the number of threads.
namespace refrain::fuzz {
namespace {

void fill(float* data, int64_t count, uint64_t seed) {
  Rng values(seed);
  for (int64_t i = 0; i < count; ++i) data[i] = static_cast<float>(values.uniform() - 0.4);
}

/// One that reads `t` and saves it for no backward.
void read(Machine& m, const char* op, const SlotPtr& from, const Tensor& t) {
  switch (m.rng.below(4)) {
    case 0:
      return m.emit(op, {from}, t.clone());
    case 1:
      return m.emit(op, {from}, t * 0.7);
    case 2:
      return m.emit(op, {from}, t.t().contiguous());
    default: {
      auto x = m.pick([&](const Tensor& other) { return is_single(other) && broadcast_together(other, t); });
      return m.emit(op, {from, x}, x->t + t);
    }
  }
}

/// A camera's or loader's buffer, filled anew, behind a tensor that stays.
void step_frame(Machine& m) {
  auto frame = m.given("frame");
  if (m.rng.chance(0.8)) fill(m.frame().data(), 12, m.rng.next());
  read(m, "read_of_frame", frame, frame->t);
}

/// As that, in LibTorch's memory, through a pointer that is asked for each time.
void step_scratch(Machine& m) {
  auto scratch = m.given("scratch");
  fill(m.pointer_to(scratch->t), 12, m.rng.next());
  read(m, "read_of_scratch", scratch, scratch->t);
}

/// Memory of its own each time.
void step_blob(Machine& m) {
  auto* bytes = new std::vector<float>(12);
  fill(bytes->data(), 12, m.rng.next());
  m.emit("from_blob", {},
         at::from_blob(
             bytes->data(), {3, 4}, [bytes](void*) { delete bytes; }, at::TensorOptions().dtype(at::kFloat)));
}

/// Behind autograd's back: what it saved of `x` are the new bytes.
void step_raw_write(Machine& m) {
  auto x = m.pick([&](const Tensor& t) {
    return is_single(t) && t.is_contiguous() && !t.is_neg() && !may_overlap(t) && !m.known_to_rerun(t);
  });
  fill(m.pointer_to(x->t), 1 + m.rng.below(x->t.numel()), m.rng.next());
  m.wrote("raw write", x);
}

void step_save(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_float(t) && !t.is_neg() && !may_overlap(t); });
  const Tensor t = x->t.detach();
  std::ostringstream out;
  m.use_pointers({t}, [&] {
    out.str("");
    torch::save(t, out);
  });
  std::istringstream in(out.str());
  Tensor read;
  torch::load(read, in);
  m.emit("loaded_from_saved", {x}, read);
}

void step_threads(Machine& m) {
  const int count = static_cast<int>(1 + m.rng.below(2));
  at::set_num_threads(count);
  m.threads_changed();
  m.wrote("set_num_threads", m.given("ramp"));
}

/// More numbers than one thread adds.
void step_big_sum(Machine& m) {
  auto ramp = m.given("ramp");
  auto x = m.pick(is_single);
  const Tensor factor = x->t.reshape({-1}).narrow(0, 0, 1).tanh();
  m.emit("sin_of_big_sum", {x, ramp}, ((ramp->t + factor) * 0.01).sum().sin());
}

/// Its gradient is sparse; used twice, the two are added.
void step_sparse_embedding(Machine& m) {
  auto table = m.given("sparse_table");
  auto ix = m.pick(is_index);
  const Tensor rows = ix->t.remainder(12);
  const Tensor once = at::embedding(table->t, rows, -1, false, true);
  if (m.rng.chance(0.5)) return m.emit("sparse_embedding", {table, ix}, once);
  m.emit("sparse_embedding_twice", {table, ix},
         once * at::embedding(table->t, (rows + 1).remainder(12), -1, false, true).sin());
}

/// Without gradients a function that reads pointers, with no operator below it.
void step_pool_1d(Machine& m) {
  auto x = m.pick([](const Tensor& t) { return is_single(t) && t.dim() == 3 && t.size(2) >= 2; });
  at::NoGradGuard no_grad;
  Tensor y;
  m.use_pointers({x->t}, [&] { y = at::max_pool1d(x->t, 2); });
  m.emit("max_pool1d", {x}, y);
}

}  // namespace

std::vector<StepSpec> outside_steps() {
  return {{"frame", 2, step_frame, "frame", Calls::kOnce},
          {"scratch", 1, step_scratch, "scratch", Calls::kOnce},
          {"blob", 1, step_blob},
          {"raw_write", 1, step_raw_write, "", Calls::kOnce},
          {"save", 0.6, step_save},
          {"set_threads", 0.15, step_threads, "ramp", Calls::kOnce},
          {"big_sum", 0.3, step_big_sum, "ramp"},
          {"sparse_embedding", 1, step_sparse_embedding, "sparse_table"},
          {"pool_1d", 0.5, step_pool_1d}};
}

}  // namespace refrain::fuzz
