#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "refrain/api.h"
#include "refrain/torch_error.h"

/// Finds the numbers of an `OutOfMemory` of which only the text is left, as where another language has caught it.
namespace refrain {

/// Holds what an `OutOfMemory` said that an allocation threw.
struct Refusal {
  int64_t number = 0;  ///< counted from 1 on each thread
  std::string message;
  OutOfMemoryReason reason = OutOfMemoryReason::kMemoryLimit;
  OutOfMemoryNumbers numbers = {};
};

/// Finds the newest of this thread's last 16 refusals whose message is part of `text`.
/// @param text  what was caught; empty finds the newest.
/// Cost: well below 10 us. Threads: any; sees only those of the calling one.
[[nodiscard]] REFRAIN_API std::optional<Refusal> find_refusal(std::string_view text = "");

}  // namespace refrain
