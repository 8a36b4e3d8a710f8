#pragma once

#include <c10/core/StorageImpl.h>

namespace refrain::tape {

template <typename S>
concept HasMaterializer = requires(S& s) {
  s.has_materializer();
  s.clear_materializer();
};

/// Whether LibTorch can report requests for a writable pointer to a storage.
inline constexpr bool kHasStorageBarrier = HasMaterializer<c10::StorageImpl>;

/// Sets a barrier: a request for a writable pointer to `storage` calls `call` first; null removes it. LibTorch removes
/// it itself after the call. Does nothing where LibTorch has no barrier.
template <typename S>
void set_storage_barrier(S* storage, void (*call)(c10::StorageImpl*)) {
  if constexpr (HasMaterializer<S>) {
    if (call)
      storage->set_materializer(call);
    else
      storage->clear_materializer();
  }
}

/// Whether a barrier is set, ours or that of copy-on-write.
template <typename S>
bool has_barrier(const S* storage) {
  if constexpr (HasMaterializer<S>) return storage->has_materializer();
  return false;
}

}  // namespace refrain::tape
