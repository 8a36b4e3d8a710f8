#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

namespace refrain::tape {

/// The module in which things were made that are numbered as they are made: from one number on, until another module's.
/// Modules are numbers of `intern`.
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
