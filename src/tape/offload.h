#pragma once

#include <c10/core/Storage.h>

#include <memory>

namespace refrain::tape {

/// The bytes of a value, somewhere else. Dropping it frees the place.
class Offloaded {
 public:
  virtual ~Offloaded() = default;
  /// In memory of its own on the device they came from. May block. @throws if they cannot be read.
  virtual c10::Storage fetch() = 0;
  /// Bytes that it takes on that device meanwhile.
  virtual size_t bytes_on_device() const { return 0; }
  /// Whether `fetch` is a collective call.
  virtual bool needs_all_ranks() const { return false; }
};

/// Where a policy's `kOffload` puts bytes. Called without the tape's lock, from any thread.
class OffloadStore {
 public:
  virtual ~OffloadStore() = default;
  /// @returns null to decline: the bytes are kept where they are.
  virtual std::shared_ptr<Offloaded> store(const c10::Storage& bytes) = 0;
};

/// The store where none is named: `refrain::set_offload_store` sets it, and src/offload a first one. Setting returns
/// the old one.
std::shared_ptr<OffloadStore> offload_store();
std::shared_ptr<OffloadStore> set_offload_store(std::shared_ptr<OffloadStore> store);

}  // namespace refrain::tape
