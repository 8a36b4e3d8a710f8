#include "tape/ambient.h"

#include <ATen/Context.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>

namespace refrain::tape {
namespace {

constexpr const char* kSwitches[] = {
    "mkldnn",           "cudnn",           "cudnn benchmark",     "deterministic cudnn",
    "deterministic algorithms", "fill uninitialized memory", "flash attention", "memory-efficient attention",
    "math attention",   "cudnn attention", "reduced-precision math attention", "nnpack",
};

uint64_t globals_word() {
  const auto& context = at::globalContext();
  const bool bits[] = {
      context.userEnabledMkldnn(),
      context.userEnabledCuDNN(),
      context.benchmarkCuDNN(),
      context.deterministicCuDNN(),
      context.deterministicAlgorithms(),
      context.deterministicFillUninitializedMemory(),
      context.userEnabledFlashSDP(),
      context.userEnabledMemEfficientSDP(),
      context.userEnabledMathSDP(),
      context.userEnabledCuDNNSDP(),
      context.allowFP16BF16ReductionMathSDP(),
      context.userEnabledNNPACK(),
  };
  uint64_t word = static_cast<uint64_t>(c10::get_default_dtype_as_scalartype()) & 0xff;
  word |= static_cast<uint64_t>(context.float32MatmulPrecision()) << 8;
  for (size_t i = 0; i < std::size(bits); ++i) word |= uint64_t{bits[i]} << (16 + i);
  return word;
}

}  // namespace

Ambient Ambient::now() {
  return {c10::impl::tls_local_dispatch_key_set(), globals_word(), c10::GradMode::is_enabled()};
}

std::string describe_change(uint64_t recorded, uint64_t now) {
  if (recorded == now) return "";
  if ((recorded ^ now) & 0xff)
    return std::string("the default dtype was ") + c10::toString(static_cast<c10::ScalarType>(recorded & 0xff)) +
           " in forward and is " + c10::toString(static_cast<c10::ScalarType>(now & 0xff)) + " now";
  if ((recorded ^ now) & 0xff00) return "the float32 matmul precision changed since forward";
  for (size_t i = 0; i < std::size(kSwitches); ++i)
    if (((recorded ^ now) >> (16 + i)) & 1)
      return std::string("the switch `") + kSwitches[i] + "` was " + (((recorded >> (16 + i)) & 1) ? "on" : "off") +
             " in forward and is " + (((now >> (16 + i)) & 1) ? "on" : "off") + " now";
  return "a global setting changed since forward";
}

AmbientScope::AmbientScope()
    : saved_keys_(c10::impl::tls_local_dispatch_key_set()), saved_grad_mode_(c10::GradMode::is_enabled()) {
  c10::impl::tls_set_dispatch_key_excluded(c10::DispatchKey::Fake, true);
}

AmbientScope::~AmbientScope() {
  c10::impl::_force_tls_local_dispatch_key_set(saved_keys_);
  c10::GradMode::set_enabled(saved_grad_mode_);
}

void AmbientScope::set(const Ambient& recorded) {
  if (current_ && *current_ == recorded) return;
  auto keys = recorded.keys;
  keys.excluded_ = keys.excluded_.add(c10::DispatchKey::Fake);
  c10::impl::_force_tls_local_dispatch_key_set(keys);
  c10::GradMode::set_enabled(recorded.grad_mode);
  current_ = recorded;
}

}  // namespace refrain::tape
