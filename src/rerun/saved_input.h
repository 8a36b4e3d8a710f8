#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <optional>
#include <string>
#include <type_traits>

#include "intercept/version.h"

namespace refrain::tape {

/// A tensor argument, kept so that an enclosing region need not hold its bytes, and without a cycle if the function
/// overwrites it.
class SavedInput {
 public:
  explicit SavedInput(const at::Tensor& tensor);

  /// @param index  among the arguments, for errors. @throws CheckpointError if it was changed since
  at::Tensor get(size_t index) const;

 private:
  torch::autograd::SavedVariable saved_;
  std::remove_cvref_t<decltype(std::declval<at::Tensor>().grad_fn())> grad_fn_;
  at::Tensor plain_;
  bool without_edge_ = false;  ///< a view from no_grad of a leaf: claims to require a gradient, and passes none on
  Version version_;
  std::string text_;
  std::optional<uint64_t> hash_;  ///< of borrowed memory, and while `set_check_inputs` is on
};

}  // namespace refrain::tape
