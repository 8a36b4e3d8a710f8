#pragma once

#include "tests/tape/support.h"

/// Everything that can be called: functions, functors, members, modules, and a custom function with habits of its own.
namespace refrain_test {

inline Tensor free_function(const Tensor& x, double scale) { return (x.exp() * scale).sin(); }

struct Layer {
  Tensor w;
  Tensor apply(const Tensor& x) { return x.mm(w).tanh().mm(w); }
  Tensor apply_const(const Tensor& x) const { return x.mm(w).sin(); }
  Tensor operator()(const Tensor& x) const { return x.mm(w).cos().exp(); }
  static Tensor twice(const Tensor& x) { return x.exp().sin() * 2; }
};

struct BlockImpl : torch::nn::Module {
  BlockImpl() : linear(register_module("linear", torch::nn::Linear(4, 4))) {}
  Tensor forward(const Tensor& x) {
    ++calls;
    return linear->forward(x).exp().sin();
  }
  Tensor forward_scaled(const Tensor& x, double scale) { return forward(x) * scale; }
  torch::nn::Linear linear;
  int calls = 0;
};
TORCH_MODULE(Block);

/// Asks for its saved tensor twice in one backward.
struct UnpacksTwice : torch::autograd::Function<UnpacksTwice> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x) {
    ctx->save_for_backward({x});
    return x.sin();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    Tensor once = grads[0] * ctx->get_saved_variables()[0];
    poison_heap();
    return {once.cos() * ctx->get_saved_variables()[0]};
  }
};

}  // namespace refrain_test
