#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

namespace refrain::tape {

/// Maps numbers given in order of creation (of nodes, operators) to the module they were created in: ranges, each from
/// one number to the next. Modules are numbers of `intern`.
class ModuleRanges {
 public:
  void from(uint64_t number, uint32_t module) {
    if (begins_.empty() ? module != 0 : begins_.back().second != module) begins_.emplace_back(number, module);
  }
  uint32_t of(uint64_t number) const {
    const auto after = std::upper_bound(begins_.begin(), begins_.end(), number,
                                        [](uint64_t n, const auto& begin) { return n < begin.first; });
    return after == begins_.begin() ? 0 : std::prev(after)->second;
  }

 private:
  std::vector<std::pair<uint64_t, uint32_t>> begins_;
};

}  // namespace refrain::tape
