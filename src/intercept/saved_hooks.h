#pragma once

#include <ATen/SavedTensorHooks.h>

#include <cstddef>

namespace refrain::tape {

/// How many saved-tensor hooks of others (`at::SavedTensorDefaultHooks`, which Python sets) are on this thread.
inline size_t saved_hook_depth() { return at::SavedTensorDefaultHooks::get_tls_state().stack.size(); }

}  // namespace refrain::tape
