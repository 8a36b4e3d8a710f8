#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include "intercept/key.h"

#include <cstdint>
#include <utility>

namespace refrain::tape {

/// While it lives, operators of this thread are seen neither by the tape nor by autograd.
class BelowTape {
  UnseenScope tape_;
  c10::impl::ExcludeDispatchKeyGuard autograd_{c10::autograd_dispatch_keyset_with_ADInplaceOrView};
};

/// `n` bytes of a memory from byte `begin` on, as a tensor over them.
at::Tensor byte_tensor(const c10::Storage& storage, size_t begin, size_t n);

/// `part` has the bytes `begin` and following of `whole`, as many as both have: copies them there, or from there.
/// Unseen by the tape.
void copy_part_into(const c10::Storage& whole, size_t begin, const c10::Storage& part);
void copy_part_from(const c10::Storage& whole, size_t begin, const c10::Storage& part);

/// `from_blob` and kin: the bytes belong to somebody who may free them.
inline bool is_borrowed(const c10::Storage& storage) {
  const auto& data = storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
  return !data.get_context() && data.get() && storage.nbytes() > 0;
}

/// Uninitialised memory from LibTorch's allocator for `device`, unseen by the tape.
c10::Storage raw_storage(size_t nbytes, c10::Device device);

/// The same bytes in memory of its own, unseen by the tape.
c10::Storage clone_storage(const c10::Storage& storage);
c10::Storage copy_storage_to(const c10::Storage& storage, c10::Device device);

/// Where the elements of `tensor` lie in its storage: from the first byte to behind the last.
std::pair<size_t, size_t> byte_range(const at::Tensor& tensor);
/// Whether two memories on one device hold the same from byte `begin` to `end`. Waits for a device; unseen by the tape.
bool equal_bytes(const c10::Storage& a, const c10::Storage& b, size_t begin, size_t end);
/// XXH3 of all bytes; from a device, by way of a copy. Cost on the CPU: about as long as reading them.
uint64_t hash_of(const c10::Storage& storage);

}  // namespace refrain::tape
