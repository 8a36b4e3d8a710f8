/// Operators of LibTorch's that read pointers and have no operator below autograd: the tape's fallback never sees them, so under a
/// cap their arguments are made resident here. Of LibTorch 2.13's composite functions that do so the others read only lengths and
/// offsets (packed sequences, `tensor_split`, `ctc_loss`), which are never evicted.

#include <ATen/ops/max_pool1d_native.h>
#include <torch/library.h>

#include "tape/evict.h"

namespace refrain::tape {
namespace {

at::Tensor max_pool1d(const at::Tensor& self, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, bool ceil_mode) {
  const Pinned pinned(self);
  return at::native::max_pool1d(self, kernel, stride, padding, dilation, ceil_mode);
}

}  // namespace
}  // namespace refrain::tape

TORCH_LIBRARY_IMPL(aten, AutogradCPU, m) { m.impl("max_pool1d", TORCH_FN(refrain::tape::max_pool1d)); }
