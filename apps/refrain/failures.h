#pragma once

#include <c10/util/Exception.h>

#include <string>

namespace refrain::cli {

/// Without LibTorch's backtraces and details, which start on the second line.
inline std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// A file name in a message may hold line breaks and other control characters: shown as '?'.
inline std::string one_line(std::string text) {
  for (char& c : text) c = static_cast<unsigned char>(c) < ' ' || c == 127 ? '?' : c;
  return text;
}

/// A limit of ours, or LibTorch's allocator being refused memory by the system (a plain `c10::Error` with this text).
inline bool is_allocation_failure(const c10::Error& error) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         error.msg().find("can't allocate memory") != std::string::npos;
}

/// What was requested, in use and the limit, without who says so and what to do about it.
inline std::string allocation_failure_cause(const c10::Error& error) {
  const std::string line = first_line(error.msg()), intro = "out of memory: ";
  const size_t begin = line.find(intro);
  const std::string cause = begin == std::string::npos ? line : line.substr(begin + intro.size());
  return cause.substr(0, cause.find(';'));
}

}  // namespace refrain::cli
