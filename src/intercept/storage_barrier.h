#pragma once

#include <c10/core/StorageImpl.h>

namespace refrain::tape {

template <typename S>
concept HasMaterializer = requires(S& s) {
  s.has_materializer();
  s.clear_materializer();
};

/// Whether LibTorch tells who asks a storage for a pointer to write through.
inline constexpr bool kHasStorageBarrier = HasMaterializer<c10::StorageImpl>;

/// Whoever asks `storage` for a pointer to write through calls `call` first; null takes that off. LibTorch takes it off after the call itself.
/// Nothing where LibTorch has no barrier.
template <typename S>
void set_storage_barrier(S* storage, void (*call)(c10::StorageImpl*)) {
  if constexpr (HasMaterializer<S>) {
    if (call)
      storage->set_materializer(call);
    else
      storage->clear_materializer();
  }
}

/// Whether any is set, ours or copy-on-write's.
template <typename S>
bool has_barrier(const S* storage) {
  if constexpr (HasMaterializer<S>) return storage->has_materializer();
  return false;
}

}  // namespace refrain::tape
