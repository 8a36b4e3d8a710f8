#include "intercept/inner_tensors.h"

#include <ATen/NestedTensorImpl.h>
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/TensorWrapper.h>

#include "intercept/storage_copy.h"
#include "intercept/tensor_meta.h"

namespace refrain::tape {
namespace {

void add(std::vector<at::Tensor>& found, const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  if (has_plain_storage(tensor)) return found.push_back(tensor);
  auto* impl = tensor.unsafeGetTensorImpl();
  if (tensor.layout() == at::kSparse) {
    const auto* sparse = static_cast<const at::SparseTensorImpl*>(impl);
    add(found, sparse->indices());
    add(found, sparse->values());
  } else if (tensor.layout() == at::kSparseCsr || tensor.layout() == at::kSparseCsc ||
             tensor.layout() == at::kSparseBsr || tensor.layout() == at::kSparseBsc) {
    const auto* sparse = static_cast<const at::SparseCsrTensorImpl*>(impl);
    add(found, sparse->compressed_indices());
    add(found, sparse->plain_indices());
    add(found, sparse->values());
  } else if (const auto* nested = at::native::get_nested_tensor_impl_or_null(tensor)) {
    add(found, nested->get_buffer());
  } else if (const auto* batched = at::functorch::maybeGetBatchedImpl(tensor)) {
    add(found, batched->value());
  } else if (const auto* wrapper = at::functorch::maybeGetTensorWrapper(tensor)) {
    add(found, wrapper->value());
  }
}

}  // namespace

std::vector<at::Tensor> inner_tensors(const at::Tensor& tensor) {
  const BelowTape below;
  std::vector<at::Tensor> found;
  add(found, tensor);
  return found;
}

}  // namespace refrain::tape
