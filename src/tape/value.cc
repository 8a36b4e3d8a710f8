#include "tape/value.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace refrain::tape {
namespace {

constexpr c10::DispatchKeySet kNotPlain({
    c10::DispatchKey::Sparse, c10::DispatchKey::SparseCsr, c10::DispatchKey::Quantized,
    c10::DispatchKey::NestedTensor, c10::DispatchKey::ZeroTensor, c10::DispatchKey::Python,
    c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
    c10::DispatchKey::Functionalize,
});

}  // namespace

void TensorMeta::assign(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  sizes_and_strides.set_sizes(impl->sizes());
  const auto strides = impl->strides();
  for (size_t i = 0; i < strides.size(); ++i) sizes_and_strides.stride_at_unchecked(i) = strides[i];
  offset = impl->storage_offset();
  keys = impl->key_set();
  dtype = impl->dtype();
  wrapped_number = impl->is_wrapped_number();
  requires_grad = impl->requires_grad();
}

at::Tensor TensorMeta::build(const c10::Storage& storage) const {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), keys, dtype);
  impl->set_sizes_and_strides(
      {sizes_and_strides.sizes_data(), sizes_and_strides.size()},
      {sizes_and_strides.strides_data(), sizes_and_strides.size()}, offset);
  if (wrapped_number) impl->set_wrapped_number(true);
  return at::Tensor(std::move(impl));
}

bool has_plain_storage(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  const auto keys = impl->key_set();
  if (keys.has_any(kNotPlain)) return false;
  if (!impl->has_storage() || impl->layout() != c10::kStrided) return false;
  return !keys.has_backend(c10::BackendComponent::MetaBit);
}

at::Tensor without_history(const at::Tensor& tensor) {
  c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::Fake);
  return tensor.variable_data();
}

}  // namespace refrain::tape
