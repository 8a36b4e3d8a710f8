#pragma once

#include <string>
#include <vector>

namespace refrain::tape {

/// Whether LibTorch has an operator `name` now: "namespace::name", or with ".overload".
bool operator_exists(const std::string& name);

/// Lists all operators without overloads, sorted, each once. Cost: milliseconds; for messages.
std::vector<std::string> operator_names();

}  // namespace refrain::tape
