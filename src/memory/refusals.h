#pragma once

#include "refrain/torch_error.h"

namespace refrain {

/// Keeps what `error` says for `find_refusal`. Without memory for it, nothing is kept.
void note_refusal(const OutOfMemory& error) noexcept;

}  // namespace refrain
