#include "intercept/tensor_meta.h"

#include <algorithm>

#include "intercept/key.h"

namespace refrain::tape {

void TensorMeta::assign(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  const auto sizes = impl->sizes(), strides = impl->strides();
  sizes_and_strides.resize(sizes.size());
  std::copy(sizes.begin(), sizes.end(), sizes_and_strides.sizes_data());
  std::copy(strides.begin(), strides.end(), sizes_and_strides.strides_data());
  offset = impl->storage_offset();
  keys = impl->key_set();
  dtype = impl->dtype();
  wrapped_number = impl->is_wrapped_number();
  requires_grad = impl->requires_grad();
}

at::Tensor TensorMeta::build(const c10::Storage& storage) const {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), keys, dtype);
  impl->set_sizes_and_strides({sizes_and_strides.sizes_data(), sizes_and_strides.size()},
                              {sizes_and_strides.strides_data(), sizes_and_strides.size()}, offset);
  if (wrapped_number) impl->set_wrapped_number(true);
  return at::Tensor(std::move(impl));
}

at::Tensor without_history(const at::Tensor& tensor) {
  const UnseenScope below;
  return tensor.variable_data();
}

}  // namespace refrain::tape
