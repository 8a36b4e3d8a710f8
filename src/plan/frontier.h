#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graph/schedule.h"
#include "plan/blocks.h"

namespace refrain::plan {

/// `Stays` in one block of memory, a byte or two a number: graphs have tens of thousands of values, frontiers a hundred
/// plans.
class PackedStays {
 public:
  PackedStays() = default;
  explicit PackedStays(const Stays& stays);
  Stays unpack() const;
  size_t bytes() const { return bytes_.size(); }

 private:
  size_t values_ = 0;
  std::vector<uint8_t> bytes_;  // by value: how many, and each as differences to the number before
};

/// A plan that was found.
struct Point {
  int64_t peak = 0, added_ns = 0;
  std::string solver;
  PackedStays stays;                        ///< or
  std::optional<graph::Schedule> schedule;  ///< one from outside
};

/// The plans found so far that no other beats in both peak and added time.
class Frontier {
 public:
  /// @param most  points; beyond, the one that is missed least is removed, never one of the ends.
  explicit Frontier(size_t most) : most_(std::max<size_t>(2, most)) {}

  /// Whether no known point is at most as high in both. Cost: logarithmic.
  bool would_take(int64_t peak, int64_t added_ns) const;
  void add(Point point);
  /// @param spacing  not if a point is known whose peak is less by less than so many bytes, though it takes more time.
  void add(const State& state, const std::string& solver, int64_t spacing = 0);

  /// Finds the point of least time within `budget`; null: nothing fits. Valid until the next `add`.
  const Point* best(int64_t budget) const;
  /// Lists points by peak, rising; time falls.
  const std::vector<Point>& points() const { return points_; }

 private:
  void thin();

  size_t most_;
  std::vector<Point> points_;
};

}  // namespace refrain::plan
