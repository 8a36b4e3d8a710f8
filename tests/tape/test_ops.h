#pragma once

#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "tests/tape/support.h"

/// Custom operators whose kernels tell the tests what happened to them. Include in one file of a binary.
namespace refrain_test {

inline std::array<std::atomic<int>, 16> ticks;  ///< how often the kernel of `tick(x, id)` ran
inline std::atomic<int> effects;                ///< how often the kernel of `effect(x)` ran
inline std::atomic<int> slow_calls;             ///< how often the kernel of `slow(x)` began
inline void reset_ticks() {
  for (auto& n : ticks) n = 0;
}

namespace kernels {

inline Tensor tick(const Tensor& x, int64_t id) {
  ++ticks.at(static_cast<size_t>(id));
  return at::mul(x, 1.0625);
}

inline Tensor effect(const Tensor& x) {
  ++effects;
  return at::mul(x, 0.5);
}

inline Tensor slow(const Tensor& x) {
  ++slow_calls;
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  return at::mul(x, 0.5);
}

inline Tensor noise(const Tensor& x) { return at::mul(at::rand(x.sizes(), x.options().requires_grad(false)), x); }

inline Tensor sees_requires_grad(const Tensor& x) { return at::mul(x, x.requires_grad() ? 2.0 : 3.0); }

inline Tensor sees_grad_mode(const Tensor& x) { return at::mul(x, at::GradMode::is_enabled() ? 2.0 : 3.0); }

inline Tensor sees_debug_info(const Tensor& x) {
  return at::mul(x, c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::TEST_INFO) ? 2.0 : 3.0);
}

inline Tensor waits_for_the_tape(const Tensor& x) {
  std::thread([] { refrain::tape_stats(); }).join();
  return at::mul(x, 2.0);
}

inline Tensor& half_then_throw(Tensor& x) {
  x.narrow(0, 0, x.size(0) / 2).fill_(0.25);
  throw std::runtime_error("half done");
}

inline Tensor& fill_through_pointer(Tensor& x, double value) {
  float* p = x.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) p[i] = static_cast<float>(value) + static_cast<float>(i);
  return x;
}

inline Tensor& grow(Tensor& x, int64_t size) {
  x.resize_({size});
  return x;
}

}  // namespace kernels

TORCH_LIBRARY(refrain_test, m) {
  m.def("tick(Tensor x, int id) -> Tensor");
  m.def("effect(Tensor x) -> Tensor");
  m.def("slow(Tensor x) -> Tensor");
  m.def("noise(Tensor x) -> Tensor", {at::Tag::nondeterministic_seeded});
  m.def("sees_requires_grad(Tensor x) -> Tensor");
  m.def("sees_grad_mode(Tensor x) -> Tensor");
  m.def("sees_debug_info(Tensor x) -> Tensor");
  m.def("waits_for_the_tape(Tensor x) -> Tensor");
  m.def("half_then_throw(Tensor(a!) x) -> Tensor(a!)");
  m.def("fill_through_pointer(Tensor(a!) x, float value) -> Tensor(a!)");
  m.def("grow(Tensor(a!) x, int size) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(refrain_test, CPU, m) {
  m.impl("tick", kernels::tick);
  m.impl("effect", kernels::effect);
  m.impl("slow", kernels::slow);
  m.impl("noise", kernels::noise);
  m.impl("sees_requires_grad", kernels::sees_requires_grad);
  m.impl("sees_grad_mode", kernels::sees_grad_mode);
  m.impl("sees_debug_info", kernels::sees_debug_info);
  m.impl("waits_for_the_tape", kernels::waits_for_the_tape);
  m.impl("half_then_throw", kernels::half_then_throw);
  m.impl("fill_through_pointer", kernels::fill_through_pointer);
  m.impl("grow", kernels::grow);
}

namespace kernels {

template <typename Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline Tensor call_tick(const Tensor& x, int64_t id) {
  return op<Tensor(const Tensor&, int64_t)>("refrain_test::tick").call(x, id);
}

/// d/dx = 1.0625, and `x` is saved although nobody reads its bytes: a slot to count by.
struct Tick : torch::autograd::Function<Tick> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, int64_t id) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x});
    return call_tick(x, id);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    return {grads[0] * ctx->get_saved_variables()[0], Tensor()};
  }
};

}  // namespace kernels

/// x * 1.0625, counted in `ticks[id]`; the raw operator, for values that need no gradient.
inline Tensor tick(const Tensor& x, int64_t id) {
  torch::NoGradGuard no_grad;
  return kernels::call_tick(x, id);
}

/// The same with a gradient (grad * x, not the true one: only equality matters), which keeps `x` for backward.
inline Tensor tick_saving(const Tensor& x, int64_t id) { return kernels::Tick::apply(x, id); }

inline Tensor unary(const char* name, const Tensor& x) {
  torch::NoGradGuard no_grad;
  return kernels::op<Tensor(const Tensor&)>(name).call(x);
}

inline Tensor half_then_throw(Tensor x) {
  torch::NoGradGuard no_grad;
  return kernels::op<Tensor&(Tensor&)>("refrain_test::half_then_throw").call(x);
}

}  // namespace refrain_test
