#pragma once

#include <c10/core/Event.h>
#include <c10/core/Storage.h>

#include <memory>

namespace refrain::offload {

/// Bytes in transit between a device and host memory. A device with streams copies on a separate one, while it
/// computes; on the CPU this is an ordinary copy. Copies of the object share the memory.
class HostBytes {
 public:
  HostBytes() = default;
  /// Begins to copy `bytes`, which may be changed and freed at once in the order of the device's current stream.
  /// @param pin  into page-locked memory, if they are on a device.
  static HostBytes copy_of(const c10::Storage& bytes, bool pin);
  /// Allocates room for bytes that will go to `device`.
  static HostBytes room(size_t nbytes, c10::Device device, bool pin);
  /// Shares the memory of `host`.
  static HostBytes sharing(const c10::Storage& host);

  explicit operator bool() const { return static_cast<bool>(host_); }
  /// Waits for the copy. @returns the bytes in host memory.
  const c10::Storage& wait();
  /// Copies into new memory on `device`, for its current stream.
  c10::Storage to(c10::Device device) const;
  /// Does the same, and may hand over its own memory.
  c10::Storage take_to(c10::Device device) &&;

 private:
  c10::Storage host_;
  std::shared_ptr<c10::Event> copied_;  ///< of the device's stream; null if the copy is done
};

}  // namespace refrain::offload
