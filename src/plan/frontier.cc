#include "plan/frontier.h"

#include <algorithm>

namespace refrain::plan {

PackedStays::PackedStays(const Stays& stays) {
  size_t count = 0;
  for (const auto& of_value : stays) count += of_value.size();
  ends_.reserve(stays.size());
  stays_.reserve(count);
  for (const auto& of_value : stays) {
    stays_.insert(stays_.end(), of_value.begin(), of_value.end());
    ends_.push_back(static_cast<uint32_t>(stays_.size()));
  }
}

Stays PackedStays::unpack() const {
  Stays stays(ends_.size());
  uint32_t begin = 0;
  for (size_t v = 0; v < ends_.size(); ++v) {
    stays[v].assign(stays_.begin() + begin, stays_.begin() + ends_[v]);
    begin = ends_[v];
  }
  return stays;
}

const Point* Frontier::best(int64_t budget) const {
  const auto above = std::upper_bound(points_.begin(), points_.end(), budget,
                                      [](int64_t bytes, const Point& point) { return bytes < point.peak; });
  return above == points_.begin() ? nullptr : &*(above - 1);
}

bool Frontier::would_take(int64_t peak, int64_t added_ns) const {
  const Point* known = best(peak);
  return known == nullptr || known->added_ns > added_ns;
}

void Frontier::add(Point point) {
  if (!would_take(point.peak, point.added_ns)) return;
  const auto first = std::lower_bound(points_.begin(), points_.end(), point.peak,
                                      [](const Point& known, int64_t peak) { return known.peak < peak; });
  auto last = first;
  while (last != points_.end() && last->added_ns >= point.added_ns) ++last;
  if (first == last) {
    points_.insert(first, std::move(point));
  } else {
    *first = std::move(point);
    points_.erase(first + 1, last);
  }
  if (points_.size() > most_) thin();
}

void Frontier::add(const State& state, const std::string& solver, int64_t spacing) {
  const Point* known = best(state.peak());
  if (known == nullptr || (known->added_ns > state.added_ns() && known->peak <= state.peak() - spacing))
    add({state.peak(), state.added_ns(), solver, PackedStays(state.stays()), {}});
}

/// Cost of removing a point: bytes up to the next, by time over the one before.
void Frontier::thin() {
  size_t least = 1;
  double least_loss = -1.0;
  for (size_t k = 1; k + 1 < points_.size(); ++k) {
    const double loss = static_cast<double>(points_[k + 1].peak - points_[k].peak) *
                        static_cast<double>(points_[k - 1].added_ns - points_[k].added_ns);
    if (least_loss >= 0.0 && loss >= least_loss) continue;
    least_loss = loss;
    least = k;
  }
  points_.erase(points_.begin() + static_cast<int64_t>(least));
}

}  // namespace refrain::plan
