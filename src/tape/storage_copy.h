#pragma once

#include <c10/core/Storage.h>

namespace refrain::tape {

/// Uninitialised memory from LibTorch's allocator for `device`, unseen by the tape.
c10::Storage raw_storage(size_t nbytes, c10::Device device);

/// The same bytes in memory of its own, unseen by the tape.
c10::Storage clone_storage(const c10::Storage& storage);
c10::Storage copy_storage_to(const c10::Storage& storage, c10::Device device);

}  // namespace refrain::tape
