#pragma once

#include <string>
#include <utility>
#include <vector>

#include "report/svg.h"

namespace refrain::report {

/// A line of a chart, labelled at its right end.
struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< by x
  std::vector<std::string> tooltips;              ///< of the points; empty for none
  std::string css;                                ///< "s0" .. "s5", and "dashed", "thin"
  size_t shape = 0;                               ///< of its markers
};

/// A level that lines are compared with, drawn across.
struct Reference {
  std::string name;
  double y = 0;
};

/// A place on the x axis that matters.
struct Mark {
  double x = 0;
  std::string markup;
};

struct LineChart {
  Axis x, y;
  std::vector<Line> lines;
  std::vector<Reference> references;
  std::vector<Mark> marks;
  double height = 260;  ///< of the plot
};

/// Draws below `top`; returns the y at which the next may begin. Labels of lines and references stand in one column at
/// the right, apart from one another.
double draw_line_chart(Svg& svg, const LineChart& chart, double top = 0);

}  // namespace refrain::report
