#include "evict/composite_ops.h"

#include <ATen/ops/max_pool1d_native.h>
#include <torch/library.h>

#include "intercept/unwarned.h"
#include "tape/pin.h"

// Of the composite functions of LibTorch 2.13 that read pointers the others read only lengths and offsets (packed sequences,
// `tensor_split`, `ctc_loss`), which are never evicted.
namespace refrain::tape {
namespace {

at::Tensor max_pool1d(const at::Tensor& self, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, bool ceil_mode) {
  const Pinned pinned(self);
  return at::native::max_pool1d(self, kernel, stride, padding, dilation, ceil_mode);
}

}  // namespace

void add_composite_ops() {
  // a static pointer, so that a leak checker finds it: never destroyed, as operators of static tensors still run at
  // exit
  [[gnu::used]] static auto* library = [] {
    const Unwarned unwarned;
    auto* made = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradCPU, __FILE__, __LINE__);
    made->impl("max_pool1d", TORCH_FN(max_pool1d));
    return made;
  }();
}

}  // namespace refrain::tape
