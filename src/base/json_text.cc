#include "base/json_text.h"

#include <fmt/format.h>

namespace refrain {
namespace {

unsigned char byte(std::string_view text, size_t i) {
  return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
}

// Bytes of the character that begins `text`, 0 if they are not UTF-8 (RFC 3629, section 4).
size_t character(std::string_view text) {
  const auto lead = byte(text, 0), second = byte(text, 1);
  const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length < 2) return length;
  const unsigned least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (second < least || second > most) return 0;
  for (size_t i = 2; i < length; ++i)
    if (byte(text, i) < 0x80 || byte(text, i) > 0xBF) return 0;
  return length;
}

}  // namespace

std::string json_string(std::string_view text) {
  std::string json = "\"";
  while (!text.empty()) {
    const size_t length = character(text);
    const auto lead = byte(text, 0);
    if (length == 0) {
      json += '?';
    } else if (lead == '"' || lead == '\\') {
      json += '\\';
      json += text[0];
    } else if (lead < ' ') {
      json += fmt::format("\\u{:04x}", lead);
    } else {
      json += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return json + "\"";
}

}  // namespace refrain
