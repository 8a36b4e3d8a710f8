#include <ATen/autocast_mode.h>
#include <fmt/format.h>

#include "refrain/amp.h"
#include "refrain/error.h"

namespace refrain {
namespace {

at::Device checked(at::Device device) {
  if (at::autocast::is_autocast_available(device.type())) return device;
  throw InvalidArgument(
      fmt::format("[refrain::AutocastScope] device type {}: LibTorch has no autocast for it; leave "
                  "the scope out.",
                  c10::DeviceTypeName(device.type(), true)));
}

at::ScalarType checked(at::ScalarType dtype) {
  if (dtype == at::kBFloat16 || dtype == at::kHalf) return dtype;
  throw InvalidArgument(
      fmt::format("[refrain::AutocastScope] dtype {}: expected BFloat16 or Half; without autocast, "
                  "leave the scope out or use AutocastScope::off.",
                  c10::toString(dtype)));
}

}  // namespace

AutocastScope::AutocastScope(at::Device device, at::ScalarType dtype, std::optional<bool> cache_enabled)
    : AutocastScope(checked(device), checked(dtype), cache_enabled.value_or(at::autocast::is_autocast_cache_enabled()),
                    true) {}

AutocastScope AutocastScope::off(at::Device device) {
  const auto type = checked(device).type();
  return {device, at::autocast::get_autocast_dtype(type), at::autocast::is_autocast_cache_enabled(), false};
}

AutocastScope::AutocastScope(at::Device device, at::ScalarType dtype, bool cache_enabled, bool enabled)
    : device_(device.type()),
      dtype_before_(at::autocast::get_autocast_dtype(device_)),
      enabled_before_(at::autocast::is_autocast_enabled(device_)),
      cache_enabled_before_(at::autocast::is_autocast_cache_enabled()) {
  at::autocast::set_autocast_enabled(device_, enabled);
  at::autocast::set_autocast_dtype(device_, dtype);
  at::autocast::increment_nesting();
  at::autocast::set_autocast_cache_enabled(cache_enabled);
}

AutocastScope::~AutocastScope() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, enabled_before_);
  at::autocast::set_autocast_dtype(device_, dtype_before_);
  at::autocast::set_autocast_cache_enabled(cache_enabled_before_);
}

}  // namespace refrain
