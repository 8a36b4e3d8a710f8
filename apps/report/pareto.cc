#include "apps/report/pareto.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

namespace refrain::report {

std::vector<size_t> pareto_front(const std::vector<Cost>& costs) {
  std::vector<size_t> order(costs.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::tuple(costs[a].memory, costs[a].time, a) < std::tuple(costs[b].memory, costs[b].time, b);
  });
  std::vector<size_t> front;
  for (const size_t i : order) {
    const bool is_first = front.empty();
    const Cost last = is_first ? Cost{0, std::numeric_limits<double>::infinity()} : costs[front.back()];
    const bool is_equal = !is_first && costs[i].memory == last.memory && costs[i].time == last.time;
    if (costs[i].time < last.time || is_equal) front.push_back(i);
  }
  return front;
}

}  // namespace refrain::report
