#include "intercept/op_names.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>

namespace refrain::tape {

bool operator_exists(const std::string& name) {
  const auto space = name.find("::");
  if (space == std::string::npos) return false;
  const auto dot = name.find('.', space);
  if (dot != std::string::npos)
    return c10::Dispatcher::singleton().findSchema({name.substr(0, dot), name.substr(dot + 1)}).has_value();
  const auto names = operator_names();
  return std::binary_search(names.begin(), names.end(), name);
}

std::vector<std::string> operator_names() {
  std::vector<std::string> names;
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames()) names.push_back(op.name);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

}  // namespace refrain::tape
