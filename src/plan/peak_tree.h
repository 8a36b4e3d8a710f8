#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace refrain::plan {

/// Numbers by slot under range additions, with their maximum. Each call O(log n).
class PeakTree {
 public:
  PeakTree() = default;
  explicit PeakTree(const std::vector<int64_t>& numbers) {
    while (leaves_ < numbers.size()) leaves_ *= 2;
    most_.assign(2 * leaves_, kLeast);
    added_.assign(2 * leaves_, 0);
    std::copy(numbers.begin(), numbers.end(), most_.begin() + static_cast<int64_t>(leaves_));
    for (size_t i = leaves_; i-- > 1;) most_[i] = std::max(most_[2 * i], most_[2 * i + 1]);
  }

  /// Adds to a range, both ends included.
  void add(int32_t from, int32_t to, int64_t number) {
    if (from > to || number == 0) return;
    size_t l = leaves_ + static_cast<size_t>(from), r = leaves_ + static_cast<size_t>(to) + 1;
    const size_t l0 = l, r0 = r - 1;
    for (; l < r; l /= 2, r /= 2) {
      if (l & 1) put(l++, number);
      if (r & 1) put(--r, number);
    }
    for (size_t i = l0 / 2; i > 0; i /= 2) pull(i);
    for (size_t i = r0 / 2; i > 0; i /= 2) pull(i);
  }

  int64_t most() const { return most_[1]; }

  /// Lowest slot that has the maximum.
  int32_t most_at() const {
    size_t i = 1;
    while (i < leaves_) i = most_[2 * i] >= most_[2 * i + 1] ? 2 * i : 2 * i + 1;
    return static_cast<int32_t>(i - leaves_);
  }

  /// Maximum of a range, both ends included.
  int64_t most(int32_t from, int32_t to) const {
    if (from > to) return kLeast;
    size_t l = leaves_ + static_cast<size_t>(from), r = leaves_ + static_cast<size_t>(to);
    int64_t left = most_[l], right = most_[r];
    if (l == r) right = kLeast;
    while (l / 2 != r / 2) {
      if (l % 2 == 0) left = std::max(left, most_[l + 1]);
      if (r % 2 == 1) right = std::max(right, most_[r - 1]);
      l /= 2, r /= 2;
      left += added_[l];
      right += added_[r];
    }
    int64_t both = std::max(left, right);
    for (l /= 2; l > 0; l /= 2) both += added_[l];
    return both;
  }

  int64_t at(int32_t slot) const { return most(slot, slot); }

  /// Lists all numbers. Linear.
  std::vector<int64_t> all(size_t size) const {
    std::vector<int64_t> sums(added_.begin(), added_.end());
    for (size_t i = 2; i < leaves_; ++i) sums[i] += sums[i / 2];
    std::vector<int64_t> numbers(size);
    for (size_t s = 0; s < size; ++s) numbers[s] = most_[leaves_ + s] + (leaves_ > 1 ? sums[(leaves_ + s) / 2] : 0);
    return numbers;
  }

 private:
  static constexpr int64_t kLeast = std::numeric_limits<int64_t>::min() / 4;

  void put(size_t i, int64_t number) {
    most_[i] += number;
    if (i < leaves_) added_[i] += number;
  }
  void pull(size_t i) { most_[i] = std::max(most_[2 * i], most_[2 * i + 1]) + added_[i]; }

  size_t leaves_ = 1;
  std::vector<int64_t> most_, added_;
};

}  // namespace refrain::plan
