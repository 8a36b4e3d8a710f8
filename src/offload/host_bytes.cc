#include "offload/host_bytes.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/TensorOptions.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>
#include <utility>

#include "intercept/storage_copy.h"

namespace refrain::offload {
namespace {

c10::Stream copy_stream(c10::Device device) {
  static std::mutex mutex;
  static auto* streams = new std::map<c10::Device, c10::Stream, decltype([](auto a, auto b) {
                                        return std::pair(a.type(), a.index()) < std::pair(b.type(), b.index());
                                      })>;
  std::lock_guard lock(mutex);
  const auto found = streams->find(device);
  if (found != streams->end()) return found->second;
  const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
  return streams->emplace(device, stream).first->second;
}

// Copies between a device and host memory, after the present work of the device's current stream.
c10::Event copy_beside(const c10::Storage& from, const c10::Storage& to, c10::Device device) {
  const c10::impl::VirtualGuardImpl impl(device.type());
  const auto stream = copy_stream(device);
  c10::Event ready(device.type()), copied(device.type());
  ready.record(impl.getStream(device));
  ready.block(stream);
  {
    const tape::BelowTape below;
    const c10::StreamGuard on(stream);
    tape::byte_tensor(to, 0, to.nbytes()).copy_(tape::byte_tensor(from, 0, from.nbytes()), /*non_blocking=*/true);
  }
  // its memory is not reused before the copy is done
  impl.recordDataPtrOnStream((from.device() == device ? from : to).data_ptr(), stream);
  copied.record(stream);
  return copied;
}

}  // namespace

HostBytes HostBytes::copy_of(const c10::Storage& bytes, bool pin) {
  auto copy = room(bytes.nbytes(), bytes.device(), pin);
  if (bytes.device().is_cpu())
    tape::copy_part_into(copy.host_, 0, bytes);
  else
    copy.copied_ = std::make_shared<c10::Event>(copy_beside(bytes, copy.host_, bytes.device()));
  return copy;
}

HostBytes HostBytes::room(size_t nbytes, c10::Device device, bool pin) {
  HostBytes made;
  if (!pin || device.is_cpu()) {
    made.host_ = tape::raw_storage(nbytes, c10::kCPU);
    return made;
  }
  const tape::BelowTape below;
  const auto pinned = at::TensorOptions().dtype(at::kByte).pinned_memory(true);
  made.host_ = at::empty({static_cast<int64_t>(nbytes)}, pinned).storage();
  return made;
}

HostBytes HostBytes::sharing(const c10::Storage& host) {
  HostBytes made;
  made.host_ = host;
  return made;
}

const c10::Storage& HostBytes::wait() {
  if (copied_) copied_->synchronize();
  copied_.reset();
  return host_;
}

c10::Storage HostBytes::to(c10::Device device) const {
  if (device.is_cpu()) return tape::clone_storage(host_);
  auto bytes = tape::raw_storage(host_.nbytes(), device);
  const auto copied = copy_beside(host_, bytes, device);
  copied.block(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  return bytes;
}

c10::Storage HostBytes::take_to(c10::Device device) && { return device.is_cpu() ? std::move(host_) : to(device); }

}  // namespace refrain::offload
