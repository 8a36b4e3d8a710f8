#pragma once

#include <ATen/SavedTensorHooks.h>

#include <cstddef>

namespace refrain::tape {

/// Number of other libraries' saved-tensor hooks (`at::SavedTensorDefaultHooks`, which Python sets) on this thread.
inline size_t saved_hook_depth() { return at::SavedTensorDefaultHooks::get_tls_state().stack.size(); }

}  // namespace refrain::tape
