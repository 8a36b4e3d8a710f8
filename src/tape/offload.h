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
};

/// Where a policy's `kOffload` puts bytes. Called without the tape's lock, from any thread.
class OffloadStore {
 public:
  virtual ~OffloadStore() = default;
  /// @returns null to decline: the bytes are kept where they are.
  virtual std::shared_ptr<Offloaded> store(const c10::Storage& bytes) = 0;
};

/// Host memory for bytes on a device; declines those in host memory.
OffloadStore& host_store();
/// The store in use. Default: `host_store`. Returns the old one. Not owned.
OffloadStore& offload_store();
OffloadStore& set_offload_store(OffloadStore& store);

}  // namespace refrain::tape
