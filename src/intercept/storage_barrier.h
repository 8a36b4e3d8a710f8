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

template <typename S>
concept CanAllowAccessAgain = requires(S& s) {
  s.clear_data_ptr_access_error_msg_();
};

/// Makes requests for a pointer to a storage without bytes an error that says why. Before LibTorch 2.12, which could not
/// end that, they get a null pointer.
template <typename S>
void forbid_access(S* storage, const char* why) {
  if constexpr (CanAllowAccessAgain<S>) storage->release_data_and_set_meta_custom_data_ptr_error_msg_(why);
}

/// Ends `forbid_access`.
template <typename S>
void allow_access(S* storage) {
  if constexpr (CanAllowAccessAgain<S>) storage->clear_data_ptr_access_error_msg_();
}

}  // namespace refrain::tape
