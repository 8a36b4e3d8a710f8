#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/report/svg.h"

namespace refrain::report {

struct Bar {
  std::string name;
  double value = 0;
  std::string markup;  ///< stands at the bar's end
  std::string tooltip;
  bool is_plain = false;   ///< the one that others are measured against
  bool is_chosen = false;  ///< set off by colour and by its label
};

/// Horizontal bars from 0, in the order given. A limit is a line across, named at its top.
struct BarChart {
  std::vector<Bar> bars;
  std::string axis_title;
  std::optional<double> limit;
  std::string limit_markup;
};

void draw_bars(Svg& svg, const BarChart& chart);

/// A part of a stacked bar, of a kind of memory.
struct BarPart {
  size_t kind = 0;
  double value = 0;
  std::string tooltip;
};

/// A stack of parts, with what was measured over what was estimated.
struct BarGroup {
  std::string markup;  ///< its heading
  std::vector<BarPart> measured, estimated;
};

struct StackedBarChart {
  std::vector<BarGroup> groups;
  std::string axis_title;
  std::optional<size_t> divider_before;  ///< a line between this group and the one before; as many as groups: after all
  std::string divider_markup;
};

void draw_stacked_bars(Svg& svg, const StackedBarChart& chart);

}  // namespace refrain::report
