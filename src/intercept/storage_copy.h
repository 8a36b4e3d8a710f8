#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include "intercept/key.h"

#include <cstdint>
#include <utility>

namespace refrain::tape {

/// Hides operators of this thread from the tape and autograd while alive.
class BelowTape {
  UnseenScope tape_;
  c10::impl::ExcludeDispatchKeyGuard autograd_{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
};

/// Makes a tensor over `n` bytes of a storage from byte `begin` on.
at::Tensor byte_tensor(const c10::Storage& storage, size_t begin, size_t n);

/// Copies between `part` and the bytes of `whole` from `begin` on, as many as both have. Unseen by the tape.
void copy_part_into(const c10::Storage& whole, size_t begin, const c10::Storage& part);
void copy_part_from(const c10::Storage& whole, size_t begin, const c10::Storage& part);

/// Whether the bytes are owned by other code, which may free them (`from_blob` and kin).
inline bool is_borrowed(const c10::Storage& storage) {
  const auto& data = storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
  return !data.get_context() && data.get() && storage.nbytes() > 0;
}

/// Allocates uninitialised memory from LibTorch's allocator for `device`, unseen by the tape.
c10::Storage raw_storage(size_t nbytes, c10::Device device);

/// Copies the bytes into new memory, unseen by the tape.
c10::Storage clone_storage(const c10::Storage& storage);
c10::Storage copy_storage_to(const c10::Storage& storage, c10::Device device);

/// Range of bytes of the elements of `tensor` in its storage: from the first to behind the last.
std::pair<size_t, size_t> byte_range(const at::Tensor& tensor);
/// Whether two storages on one device are equal from byte `begin` to `end`. Waits for a device; unseen by the tape.
bool equal_bytes(const c10::Storage& a, const c10::Storage& b, size_t begin, size_t end);
/// Computes XXH3 of all bytes; from a device, by way of a copy. Cost on the CPU: about as long as reading them.
uint64_t hash_of(const c10::Storage& storage);

}  // namespace refrain::tape
