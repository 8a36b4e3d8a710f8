#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace refrain::tape {

/// The tensors with a plain storage whose bytes `tensor` is made of, where it has none itself: indices and values of a sparse
/// tensor, the buffer of a nested one, what functorch wraps. Empty if LibTorch does not show them (mkldnn).
std::vector<at::Tensor> inner_tensors(const at::Tensor& tensor);

}  // namespace refrain::tape
