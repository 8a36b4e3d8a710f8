#pragma once

#include <c10/core/Event.h>
#include <c10/core/Storage.h>

#include <memory>

namespace refrain::offload {

/// Bytes on their way between a device and host memory. A device with streams copies on one of its own, beside what it
/// computes; on the CPU this is a plain copy. Copies share the memory.
class HostBytes {
 public:
  HostBytes() = default;
  /// Begins to copy `bytes`, which may be changed and freed at once in the order of the device's current stream.
  /// @param pin  into page-locked memory, if they are on a device.
  static HostBytes copy_of(const c10::Storage& bytes, bool pin);
  /// Room for bytes that will go to `device`.
  static HostBytes room(size_t nbytes, c10::Device device, bool pin);
  /// The memory itself.
  static HostBytes sharing(const c10::Storage& host);

  explicit operator bool() const { return static_cast<bool>(host_); }
  /// The bytes in host memory. Waits until they are there.
  const c10::Storage& wait();
  /// In memory of its own on `device`, for its current stream.
  c10::Storage to(c10::Device device) const;
  /// The same, where this may give its own memory away.
  c10::Storage take_to(c10::Device device) &&;

 private:
  c10::Storage host_;
  std::shared_ptr<c10::Event> copied_;  ///< of the device's stream; null if they are there
};

}  // namespace refrain::offload
