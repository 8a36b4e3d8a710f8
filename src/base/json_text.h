#pragma once

#include <string>
#include <string_view>

namespace refrain {

/// Writes `text` as a JSON string, quotes included. Bytes that are not UTF-8 become '?'.
std::string json_string(std::string_view text);

}  // namespace refrain
