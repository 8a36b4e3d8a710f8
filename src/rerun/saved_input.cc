#include "rerun/saved_input.h"

#include <ATen/ops/alias.h>
#include <torch/csrc/autograd/variable.h>

#include "intercept/storage_copy.h"
#include "intercept/tensor_meta.h"
#include "refrain/torch_error.h"
#include "rerun/op_trace.h"
#include "tape/pin.h"

namespace refrain::tape {
namespace {

uint64_t hash_of_pinned(const at::Tensor& tensor) {
  const Pinned bytes(tensor);
  return hash_of(tensor.storage());
}

}  // namespace

SavedInput::SavedInput(const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  if (tensor.is_inference()) {
    plain_ = tensor;
    return;
  }
  version_ = Version(tensor);
  text_ = describe(tensor.scalar_type(), tensor.sizes(), tensor.device());
  if (has_plain_storage(tensor) &&
      (Tape::get().check_inputs.load(std::memory_order_relaxed) || is_borrowed(tensor.storage())))
    hash_ = hash_of_pinned(tensor);
  try {
    grad_fn_ = tensor.grad_fn();
  } catch (const c10::Error&) {  // a view from no_grad whose base was overwritten: autograd refuses it once it is used
    plain_ = tensor;
    return;
  }
  without_edge_ =
      tensor.requires_grad() && !grad_fn_ && !torch::autograd::impl::get_autograd_meta(tensor)->requires_grad_;
  const auto history = tensor.requires_grad() && !without_edge_ ? tensor : tensor.detach();
  saved_ = torch::autograd::SavedVariable(history, grad_fn_ != nullptr);
}

at::Tensor SavedInput::get(size_t index) const {
  if (version_.moved())
    throw CheckpointError(fmt::format(
        "[refrain::checkpoint] backward must rerun the function, but its input tensor {} ({}) was changed since "
        "forward: it is {}. Pass a clone, move the change after backward, or use recompute_mode(kReplayOperators).",
        index, text_, version_.text()));
  if (plain_.defined()) return plain_;
  auto tensor = saved_.unpack(grad_fn_);
  if (hash_ && hash_of_pinned(tensor) != *hash_)
    throw CheckpointError(fmt::format(
        "[refrain::checkpoint] backward must rerun the function, but its input tensor {} ({}) holds other bytes than "
        "in forward: it was refilled through a pointer. Pass a clone, move the change after backward, or use "
        "recompute_mode(kReplayOperators), which copies what it can see.",
        index, text_));
  if (!without_edge_) return tensor;
  at::NoGradGuard no_grad;
  return at::alias(tensor.detach().requires_grad_());
}

}  // namespace refrain::tape
