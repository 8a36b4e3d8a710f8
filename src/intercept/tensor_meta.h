#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/SizesAndStrides.h>

#include <cstdint>

namespace refrain::tape {

/// A tensor minus its bytes: enough to rebuild it over a storage.
struct TensorMeta {
  c10::impl::SizesAndStrides sizes_and_strides;
  int64_t offset = 0;
  c10::DispatchKeySet keys;  ///< conj and neg bits live here
  caffe2::TypeMeta dtype;
  bool wrapped_number = false;
  bool requires_grad = false;

  void assign(const at::Tensor& tensor);
  at::Tensor build(const c10::Storage& storage) const;
};

/// Whether the tape can name `tensor` by storage and metadata. Sparse, quantized, nested, mkldnn, meta, zero and Python
/// tensors cannot be; they are kept as they are.
inline bool has_plain_storage(const at::Tensor& tensor) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet kNotPlain({DispatchKey::Sparse, DispatchKey::SparseCsr, DispatchKey::Quantized,
                                           DispatchKey::NestedTensor, DispatchKey::ZeroTensor, DispatchKey::Python,
                                           DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper,
                                           DispatchKey::Functionalize, DispatchKey::MkldnnCPU});
  const auto* impl = tensor.unsafeGetTensorImpl();
  const auto keys = impl->key_set();
  return !keys.has_any(kNotPlain) && impl->has_storage() && !keys.has_backend(c10::BackendComponent::MetaBit);
}

/// Makes a tensor over the same memory with its own version counter: one with history would close a cycle through what
/// it saved.
at::Tensor without_history(const at::Tensor& tensor);

}  // namespace refrain::tape
