#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

/// The tape's place in LibTorch's dispatcher. Only this file names the key.
namespace refrain::tape {

/// Key below autograd and functionalization, above the choice of a backend: no other key there is free
/// (docs/design/tape.md).
inline constexpr c10::DispatchKey kTapeKey = c10::DispatchKey::Fake;

inline constexpr c10::DispatchKeySet kBelowTape(c10::DispatchKeySet::FULL_AFTER, kTapeKey);

/// Key that is excluded where the tape includes its own, so that its calls differ from those of another library with
/// that key. No tensor of LibTorch's has it.
inline constexpr c10::DispatchKey kTapeMark = c10::DispatchKey::FPGA;

/// Includes or excludes the tape for operators of this thread from now on.
inline void set_tape_included(bool on) {
  c10::impl::tls_set_dispatch_key_included(kTapeKey, on);
  c10::impl::tls_set_dispatch_key_excluded(kTapeMark, on);
}

/// Hides operators of this thread from the tape while alive.
class UnseenScope {
  c10::impl::ExcludeDispatchKeyGuard guard_{kTapeKey};
};

}  // namespace refrain::tape
