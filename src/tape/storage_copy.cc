#include "tape/storage_copy.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/TensorOptions.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace refrain::tape {
namespace {

struct BelowTape {
  c10::impl::ExcludeDispatchKeyGuard tape{c10::DispatchKey::Fake};
  c10::impl::ExcludeDispatchKeyGuard autograd{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
};

at::Tensor as_bytes(const c10::Storage& storage) {
  const auto key = c10::computeDispatchKey(c10::kByte, c10::kStrided, storage.device());
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key),
                                                   caffe2::TypeMeta::Make<uint8_t>());
  impl->set_sizes_contiguous({static_cast<int64_t>(storage.nbytes())});
  return at::Tensor(std::move(impl));
}

}  // namespace

c10::Storage raw_storage(size_t nbytes, c10::Device device) {
  BelowTape below;
  return at::empty({static_cast<int64_t>(nbytes)}, at::TensorOptions().dtype(at::kByte).device(device)).storage();
}

c10::Storage copy_storage_to(const c10::Storage& storage, c10::Device device) {
  auto copy = raw_storage(storage.nbytes(), device);
  BelowTape below;
  if (storage.nbytes() > 0) as_bytes(copy).copy_(as_bytes(storage));
  return copy;
}

c10::Storage clone_storage(const c10::Storage& storage) { return copy_storage_to(storage, storage.device()); }

}  // namespace refrain::tape
