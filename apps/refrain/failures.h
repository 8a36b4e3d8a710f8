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

/// The numbers of a refusal in one line, without advice.
std::string allocation_failure_cause(const c10::Error& error);

}  // namespace refrain::cli
