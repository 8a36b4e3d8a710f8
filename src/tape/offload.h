#pragma once

#include <c10/core/Storage.h>
#include <c10/util/Exception.h>

#include <memory>

namespace refrain::tape {

/// The bytes of a value in another place, which its destructor frees.
class Offloaded {
 public:
  virtual ~Offloaded() = default;
  /// Fetches the bytes into new memory on the device they came from. May block. @throws if they cannot be read.
  virtual c10::Storage fetch() = 0;
  /// Number of bytes that it takes on that device meanwhile.
  virtual size_t bytes_on_device() const { return 0; }
  /// Whether `fetch` is a collective call.
  virtual bool needs_all_ranks() const { return false; }
};

/// Takes the bytes that a policy offloads. Called without the tape's lock, from any thread.
class OffloadStore {
 public:
  virtual ~OffloadStore() = default;
  /// @returns null to decline: the bytes are kept where they are.
  virtual std::shared_ptr<Offloaded> store(const c10::Storage& bytes) = 0;
};

/// Has `store`, an `OffloadStore` or `RegionWork`, take the bytes after an operator or out of a hook. An error there comes when bytes are
/// written already, or makes autograd keep what a custom function saves. @returns null if it declines, or has no memory for a copy.
template <typename Store>
std::shared_ptr<Offloaded> store_or_keep(Store& store, const c10::Storage& bytes) {
  try {
    return store.store(bytes);
  } catch (const c10::OutOfMemoryError&) {
    return nullptr;
  }
}

/// The default store: `refrain::set_offload_store` sets it, and src/offload a first one. Setting returns the old one.
std::shared_ptr<OffloadStore> offload_store();
std::shared_ptr<OffloadStore> set_offload_store(std::shared_ptr<OffloadStore> store);

}  // namespace refrain::tape
