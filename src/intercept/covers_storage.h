#pragma once

#include <ATen/core/Tensor.h>

namespace refrain::tape {

/// Whether every byte of the storage belongs to exactly one element of `tensor`. For tensors with a plain storage.
inline bool covers_storage(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() && tensor.nbytes() == tensor.storage().nbytes();
}

}  // namespace refrain::tape
