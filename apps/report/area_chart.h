#pragma once

#include <string>
#include <utility>
#include <vector>

#include "apps/report/levels.h"
#include "apps/report/numbers.h"
#include "apps/report/svg.h"

namespace refrain::report {

/// A stretch of a step: forward, recompute, backward or optimizer.
struct Phase {
  std::string name;
  double begin_us = 0, end_us = 0;
};

struct Peak {
  double t_us = 0;
  int64_t bytes = 0;
  std::vector<int64_t> by_kind;  ///< as in `kinds()`
};

struct AreaChart {
  std::vector<Level> levels;
  std::vector<Phase> phases;
  /// Resident bytes of the process less what it had before any tensor; may be empty.
  std::vector<LevelPoint> resident;
  Peak peak;
  int64_t base_bytes = 0;   ///< before the step
  int64_t scale_bytes = 0;  ///< the axis reaches at least this far, so that charts can be compared
  ByteUnit unit;
};

/// Memory over time as areas by kind, stacked; phases in a strip above; beside it, but for the narrow width, the peak as a
/// bar at the same scale with its kinds named.
void draw_area_chart(Svg& svg, const AreaChart& chart);

/// First and last time of levels and phases.
std::pair<double, double> time_range(const AreaChart& chart);

}  // namespace refrain::report
