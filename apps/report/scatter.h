#pragma once

#include <string>
#include <vector>

#include "apps/report/svg.h"

namespace refrain::report {

/// A way to run a step, as a point of memory over time.
struct ScatterPoint {
  std::string name;
  double memory = 0, time = 0;  ///< in the axes' units
  std::string tooltip;
  bool is_plain = false;  ///< the one that others are measured against
};

/// Points labelled directly, those of the Pareto front filled and joined by the line under which nothing lies. Labels keep
/// clear of points and of one another as far as there is room; leaders join those that had to move away.
void draw_scatter(Svg& svg, const std::vector<ScatterPoint>& points, const Axis& time, const Axis& memory);

}  // namespace refrain::report
