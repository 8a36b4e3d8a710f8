#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include "intercept/op_traits.h"

/// When autograd saves a tensor, seen from below it.
namespace refrain::tape {

/// Whether the operator that autograd records has run, and `tensor`, which it saves, is a result of it.
bool made_by_newest_node(const at::Tensor& tensor);
/// Whether LibTorch may run an operator with these arguments as part of another one: to resolve a conjugate, a negative
/// view or a zero tensor first.
bool may_be_helper(const OpTraits& op, const torch::jit::Stack& stack);

}  // namespace refrain::tape
