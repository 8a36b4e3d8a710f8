#include "intercept/saving.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include "intercept/for_each_tensor.h"

namespace refrain::tape {

bool made_by_newest_node(const at::Tensor& tensor) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(tensor);
  return meta && meta->grad_fn_ && meta->grad_fn_->sequence_nr() + 1 == at::sequence_number::peek();
}

bool may_be_helper(const OpTraits& op, const torch::jit::Stack& stack) {
  bool any = false, resolves = false;
  for_each_tensor(stack.data() + (stack.size() - op.num_args), op.num_args,
                  [&](const at::Tensor& tensor, size_t, int32_t) {
                    any = true;
                    resolves |= tensor.is_conj() || tensor.is_neg() || tensor._is_zerotensor();
                  });
  return resolves || !any;
}

}  // namespace refrain::tape
