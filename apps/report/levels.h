#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/report/fields.h"

namespace refrain::report {

/// What is alive from one time on, until the next.
struct Level {
  double t_us = 0;
  std::vector<int64_t> by_kind;  ///< as in `kinds()`
  int64_t total = 0;
};

/// Bytes at a time.
struct LevelPoint {
  double t_us;
  int64_t bytes;
};

/// A list of pairs of time in µs and bytes, in order.
std::vector<LevelPoint> read_points(const Field& list);

/// The levels of a timeline document, by time. If all kinds have the times of `points`, row by row; else at each time that
/// any of them names, a kind's level being that of its last point until then.
std::vector<Level> read_levels(const Field& document);

/// At most two levels a column of `columns` equal spans of time: the lowest and the highest. Few levels stay as they are.
std::vector<Level> thin_out(const std::vector<Level>& levels, size_t columns);

/// The highest total of any level within [begin_us, end_us], the level that holds at its beginning included; 0 if none.
int64_t highest_within(const std::vector<Level>& levels, double begin_us, double end_us);

}  // namespace refrain::report
