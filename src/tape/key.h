#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <string>

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

/// To be called before the tape's key is included for something new.
///
/// The first call registers a fallback on the key. Where somebody was first, it takes the key operator by operator instead, with slower kernels, and hands on
/// what is not for the tape; operators that were defined since, too.
/// Cost: some ms the first time, then two loads. @throws Error if the tape has no place on its key, or somebody else includes it on this thread: who, and what to do.
void require_key();

/// The first operator, by name, whose kernel on the key is somebody else's, so that the tape does not see it; "" if there is none. Cost: some ms.
std::string operator_out_of_sight();

}  // namespace refrain::tape
