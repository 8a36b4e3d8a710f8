#pragma once

#include <ATen/core/Tensor.h>

#include "tape/cap.h"

namespace refrain::tape {

/// Pins a tensor's bytes while alive, after recomputing them if needed. Does nothing without a cap.
class Pinned {
 public:
  explicit Pinned(const at::Tensor& tensor) {
    if (!is_capped()) return;
    cap_hooks().pin(tensor, 1);
    tensor_ = &tensor;
  }
  ~Pinned() {
    if (tensor_) cap_hooks().pin(*tensor_, -1);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  const at::Tensor* tensor_ = nullptr;
};

}  // namespace refrain::tape
