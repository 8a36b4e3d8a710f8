#pragma once

#include <string>
#include <utility>
#include <vector>

#include "apps/report/svg.h"

namespace refrain::report {

/// Where a line has no point because there is none to have.
struct Refused {
  double x = 0;
  std::string tooltip;
};

/// A line of a chart, labelled at its right end.
struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< by x
  std::vector<std::string> tooltips;              ///< of the points; empty for none
  size_t colour = 0;                              ///< modulo their number
  std::string css = {};                           ///< "dashed", "thin", "dots"
  size_t shape = 0;                               ///< of its markers
  bool is_labelled = true;
  std::vector<Refused> refused = {};  ///< crosses over the plot, in a row of the line's own
  std::string refused_name = "no fit";
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

/// One below the other, as wide. Labels of lines and references stand in a column at the right, apart from one another.
void draw_line_charts(Svg& svg, const std::vector<LineChart>& charts);

}  // namespace refrain::report
