#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace refrain::tape {

/// Lists the tensors with a plain storage that hold the bytes of a `tensor` without one: indices and values of a sparse
/// tensor, the buffer of a nested one, the tensor that functorch wraps. Empty if LibTorch does not show them (mkldnn).
std::vector<at::Tensor> inner_tensors(const at::Tensor& tensor);

}  // namespace refrain::tape
