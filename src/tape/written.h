#pragma once

#include <c10/core/Storage.h>
#include <c10/util/SmallVector.h>

#include <vector>

#include "intercept/pointer_index.h"
#include "tape/barrier_pause.h"
#include "tape/lifetime.h"

/// Storages that the running operator writes.
namespace refrain::tape {

/// A storage that is written.
struct Write {
  c10::Storage storage;
  const void* data = nullptr;
  size_t nbytes = 0;
  c10::Storage copy;  ///< old bytes of a leaf that ops still need

  Write() noexcept {}  // as that of `ArgRef`
  bool moved() const { return storage.data() != data || storage.nbytes() != nbytes; }
};

template <typename W, unsigned N>
struct Writes : c10::SmallVector<W, N> {
  PointerIndex index;
};

/// Finds the entry for `tensor`'s storage; adds one if this is the first argument that names it.
template <typename W, unsigned N>
W& write_to(Writes<W, N>& writes, const at::Tensor& tensor) {
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  const auto known =
      writes.index.find(writes, storage, [](const W& write) { return write.storage.unsafeGetStorageImpl(); });
  if (known != PointerIndex::kNone) return writes[known];
  auto& write = writes.emplace_back();
  write.storage = tensor.storage();
  write.data = write.storage.data();
  write.nbytes = write.storage.nbytes();
  return write;
}

/// Notes that the operator threw: what it was writing may hold anything.
template <typename W>
void forget_written(c10::SmallVectorImpl<W>& writes, BarrierPause& pause, std::vector<Unsettled>& unsettled) {
  TapeLock lock;
  for (auto& write : writes)
    if (auto* value = find_value(lock, write.storage.unsafeGetStorageImpl()))
      overwritten(lock, value, std::move(write.copy), nullptr, unsettled);
  pause.restore(lock);
}

}  // namespace refrain::tape
