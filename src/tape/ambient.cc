#include "tape/ambient.h"

#include <ATen/Context.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>

#include "tape/key.h"

namespace refrain::tape {
namespace {

constexpr const char* kSwitches[] = {
    "mkldnn",           "cudnn",           "cudnn benchmark",     "deterministic cudnn",
    "deterministic algorithms", "fill uninitialized memory", "flash attention", "memory-efficient attention",
    "math attention",   "cudnn attention", "reduced-precision math attention", "nnpack",
};

constexpr uint64_t kPrecision = 0xff00;  // all set: not read

uint64_t globals_word(bool precision) {
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
  word |= precision ? static_cast<uint64_t>(context.float32MatmulPrecision()) << 8 : kPrecision;
  for (size_t i = 0; i < std::size(bits); ++i) word |= uint64_t{bits[i]} << (16 + i);
  return word;
}

}  // namespace

Ambient Ambient::now(bool precision) {
  return {c10::impl::tls_local_dispatch_key_set(), globals_word(precision), c10::GradMode::is_enabled()};
}

bool Ambient::same_globals(const Ambient& now) const {
  const uint64_t compared = (globals & kPrecision) == kPrecision ? ~kPrecision : ~uint64_t{0};
  return ((globals ^ now.globals) & compared) == 0;
}

std::string describe_change(const Ambient& recorded, const Ambient& now) {
  const uint64_t before = recorded.globals, after = now.globals, changed = before ^ after;
  if (changed & 0xff)
    return std::string("the default dtype was ") + c10::toString(static_cast<c10::ScalarType>(before & 0xff)) +
           " in forward and is " + c10::toString(static_cast<c10::ScalarType>(after & 0xff)) + " now";
  for (size_t i = 0; i < std::size(kSwitches); ++i)
    if ((changed >> (16 + i)) & 1)
      return std::string("the switch `") + kSwitches[i] + "` was " + (((before >> (16 + i)) & 1) ? "on" : "off") +
             " in forward and is " + (((after >> (16 + i)) & 1) ? "on" : "off") + " now";
  return "the float32 matmul precision changed since forward";
}

AmbientScope::AmbientScope()
    : saved_keys_(c10::impl::tls_local_dispatch_key_set()), saved_grad_mode_(c10::GradMode::is_enabled()) {
  c10::impl::tls_set_dispatch_key_excluded(kTapeKey, true);
}

AmbientScope::~AmbientScope() {
  c10::impl::_force_tls_local_dispatch_key_set(saved_keys_);
  c10::GradMode::set_enabled(saved_grad_mode_);
}

void AmbientScope::set(const Ambient& recorded) {
  if (current_ && *current_ == recorded) return;
  auto keys = recorded.keys;
  keys.excluded_ = keys.excluded_.add(kTapeKey);
  c10::impl::_force_tls_local_dispatch_key_set(keys);
  c10::GradMode::set_enabled(recorded.grad_mode);
  current_ = recorded;
}

}  // namespace refrain::tape
