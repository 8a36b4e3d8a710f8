#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <exception>
#include <string>

#include "refrain/distributed.h"

namespace refrain {

/// Message of an error, without LibTorch's backtrace.
inline std::string first_line(const std::exception& error) {
  const auto* const torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text = torch_error ? torch_error->msg() : error.what();
  return text.substr(0, text.find('\n'));
}

/// Makes the error of a failed collective. @param where  as "[refrain::ProcessGroup] barrier".
inline DistributedError lost_rank(const std::string& where, int64_t rank, int64_t size, const std::exception& cause) {
  return DistributedError(
      fmt::format("{} failed on rank {} of {}: {}; another rank exited or timed out: see its output.", where, rank,
                  size, first_line(cause)));
}

}  // namespace refrain
