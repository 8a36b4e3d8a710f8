#pragma once

#include <cstddef>
#include <vector>

namespace refrain::report {

/// A way to run a step: what it costs in two respects, less being better in both.
struct Cost {
  double memory = 0, time = 0;
};

/// Indices of the costs that no other beats: none is at most as large in both and smaller in one. Equal ones are all in.
/// By memory, then time, then index. Cost: O(n log n).
std::vector<size_t> pareto_front(const std::vector<Cost>& costs);

}  // namespace refrain::report
