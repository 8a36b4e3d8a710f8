#pragma once

#include <ATen/ops/_log_softmax_backward_data_ops.h>
#include <ATen/ops/_log_softmax_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_ops.h>
#include <ATen/ops/_softmax_backward_data_ops.h>
#include <ATen/ops/_softmax_ops.h>
#include <ATen/ops/_to_copy_ops.h>
#include <ATen/ops/_unsafe_view_ops.h>
#include <ATen/ops/add_ops.h>
#include <ATen/ops/addcdiv_ops.h>
#include <ATen/ops/addcmul_ops.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/alias_ops.h>
#include <ATen/ops/as_strided_ops.h>
#include <ATen/ops/baddbmm_ops.h>
#include <ATen/ops/bernoulli_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/cat_ops.h>
#include <ATen/ops/clone_ops.h>
#include <ATen/ops/convolution_backward_ops.h>
#include <ATen/ops/convolution_ops.h>
#include <ATen/ops/copy_ops.h>
#include <ATen/ops/detach_ops.h>
#include <ATen/ops/div_ops.h>
#include <ATen/ops/embedding_dense_backward_ops.h>
#include <ATen/ops/embedding_ops.h>
#include <ATen/ops/empty_like_ops.h>
#include <ATen/ops/exp_ops.h>
#include <ATen/ops/expand_ops.h>
#include <ATen/ops/fill_ops.h>
#include <ATen/ops/gelu_backward_ops.h>
#include <ATen/ops/gelu_ops.h>
#include <ATen/ops/lerp_ops.h>
#include <ATen/ops/max_pool2d_with_indices_backward_ops.h>
#include <ATen/ops/max_pool2d_with_indices_ops.h>
#include <ATen/ops/mean_ops.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/mul_ops.h>
#include <ATen/ops/native_batch_norm_backward_ops.h>
#include <ATen/ops/native_batch_norm_ops.h>
#include <ATen/ops/native_dropout_backward_ops.h>
#include <ATen/ops/native_dropout_ops.h>
#include <ATen/ops/native_layer_norm_backward_ops.h>
#include <ATen/ops/native_layer_norm_ops.h>
#include <ATen/ops/neg_ops.h>
#include <ATen/ops/new_zeros_ops.h>
#include <ATen/ops/nll_loss_backward_ops.h>
#include <ATen/ops/nll_loss_forward_ops.h>
#include <ATen/ops/ones_like_ops.h>
#include <ATen/ops/permute_ops.h>
#include <ATen/ops/pow_ops.h>
#include <ATen/ops/relu_ops.h>
#include <ATen/ops/select_backward_ops.h>
#include <ATen/ops/select_ops.h>
#include <ATen/ops/sigmoid_backward_ops.h>
#include <ATen/ops/sigmoid_ops.h>
#include <ATen/ops/silu_backward_ops.h>
#include <ATen/ops/silu_ops.h>
#include <ATen/ops/slice_backward_ops.h>
#include <ATen/ops/slice_ops.h>
#include <ATen/ops/split_ops.h>
#include <ATen/ops/sqrt_ops.h>
#include <ATen/ops/squeeze_ops.h>
#include <ATen/ops/stack_ops.h>
#include <ATen/ops/sub_ops.h>
#include <ATen/ops/sum_ops.h>
#include <ATen/ops/t_ops.h>
#include <ATen/ops/tanh_backward_ops.h>
#include <ATen/ops/tanh_ops.h>
#include <ATen/ops/threshold_backward_ops.h>
#include <ATen/ops/transpose_ops.h>
#include <ATen/ops/unbind_ops.h>
#include <ATen/ops/unsqueeze_ops.h>
#include <ATen/ops/view_ops.h>
#include <ATen/ops/where_ops.h>
#include <ATen/ops/zero_ops.h>
#include <ATen/ops/zeros_like_ops.h>
#include <ATen/ops/zeros_ops.h>

/// Calls `X` with the name in `at::_ops` of each operator with a typed way in: those that models spend most calls on. None is composite.
// clang-format off
#define REFRAIN_TYPED_OPS(X) \
  X(view) X(transpose_int) X(t) X(select_int) X(slice_Tensor) X(expand) X(unsqueeze) X(squeeze_dim) X(permute) X(as_strided) \
  X(detach) X(alias) X(_unsafe_view) X(split_Tensor) X(unbind_int) \
  X(mm) X(addmm) X(bmm) X(baddbmm) X(add_Tensor) X(add__Tensor) X(add__Scalar) X(sub_Tensor) X(mul_Tensor) X(mul__Tensor) \
  X(mul_Scalar) X(mul__Scalar) X(div_Tensor) X(div_Scalar) X(div__Tensor) X(neg) X(sigmoid) X(tanh) X(relu) X(gelu) X(silu) \
  X(exp) X(sqrt) X(pow_Tensor_Scalar) \
  X(sigmoid_backward) X(tanh_backward) X(threshold_backward) X(gelu_backward) X(silu_backward) X(addcmul_) X(addcdiv_) \
  X(lerp__Scalar) \
  X(cat) X(stack) X(sum) X(sum_dim_IntList) X(mean) X(mean_dim) X(copy_) X(clone) X(_to_copy) X(zeros) X(zeros_like) \
  X(ones_like) X(empty_like) X(new_zeros) X(fill__Scalar) X(zero_) X(where_self) \
  X(native_layer_norm) X(native_layer_norm_backward) X(native_batch_norm) X(native_batch_norm_backward) X(_softmax) \
  X(_softmax_backward_data) X(_log_softmax) X(_log_softmax_backward_data) \
  X(embedding) X(embedding_dense_backward) X(nll_loss_forward) X(nll_loss_backward) X(native_dropout) \
  X(native_dropout_backward) X(bernoulli__float) \
  X(convolution) X(convolution_backward) X(max_pool2d_with_indices) X(max_pool2d_with_indices_backward) X(slice_backward) \
  X(select_backward) \
  X(_scaled_dot_product_flash_attention_for_cpu) X(_scaled_dot_product_flash_attention_for_cpu_backward)
// clang-format on
