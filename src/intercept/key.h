#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

/// Where the tape stands in LibTorch's dispatcher. The one place that names the key.
namespace refrain::tape {

/// Lies below autograd and functionalization, above the choice of a backend: no other key there is free, as docs/design/tape.md says.
inline constexpr c10::DispatchKey kTapeKey = c10::DispatchKey::Fake;

inline constexpr c10::DispatchKeySet kBelowTape(c10::DispatchKeySet::FULL_AFTER, kTapeKey);

/// Excluded where the tape includes its key, so that a call for it is told from one for somebody else with that key. No tensor of LibTorch's has it.
inline constexpr c10::DispatchKey kTapeMark = c10::DispatchKey::FPGA;

/// Lets operators of this thread reach the tape from now on, or not.
inline void set_tape_included(bool on) {
  c10::impl::tls_set_dispatch_key_included(kTapeKey, on);
  c10::impl::tls_set_dispatch_key_excluded(kTapeMark, on);
}

/// While it lives, the tape sees no operator of this thread.
class UnseenScope {
  c10::impl::ExcludeDispatchKeyGuard guard_{kTapeKey};
};

}  // namespace refrain::tape
