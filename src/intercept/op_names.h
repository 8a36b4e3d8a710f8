#pragma once

#include <string>
#include <vector>

namespace refrain::tape {

/// Whether LibTorch knows `name` now: "namespace::name", or with ".overload".
bool operator_exists(const std::string& name);

/// All of them without overloads, sorted, each once. Cost: milliseconds; for messages.
std::vector<std::string> operator_names();

}  // namespace refrain::tape
