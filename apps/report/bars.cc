#include "apps/report/bars.h"

#include <algorithm>

#include "apps/report/kinds.h"
#include "apps/report/markup.h"

namespace refrain::report {

void draw_bars(Svg& svg, const BarChart& chart) {
  double highest = chart.limit.value_or(0), widest = 0;
  for (const auto& bar : chart.bars) {
    highest = std::max(highest, bar.value);
    widest = std::max(widest, text_width(bar.name, kFontSize));
  }
  const bool is_above = svg.is_narrow();  // names over their bars
  const double left = is_above ? 0 : std::min(widest, 220.0) + 12, right = svg.width() - 96;
  const double pitch = is_above ? 40 : 28, thickness = 16;
  const double top = chart.limit ? 24 : 6;
  const double bottom = top + pitch * static_cast<double>(chart.bars.size());
  svg.set_height(bottom + 40);

  const Axis axis = Axis::from_zero(highest, svg.is_narrow() ? 3 : 6, chart.axis_title);
  const Scale x = svg.x_axis(axis, left, right, bottom);
  for (const double tick : axis.ticks) {
    // names over the bars begin where the line at 0 would be
    if (tick != 0 || !is_above) svg.line(x(tick), top, x(tick), bottom, tick == 0 ? "base" : "grid");
  }
  const auto top_of = [&](size_t i) {
    return top + pitch * static_cast<double>(i) + (is_above ? 20 : (pitch - thickness) / 2);
  };
  for (size_t i = 0; i < chart.bars.size(); ++i) {
    const Bar& bar = chart.bars[i];
    svg.rect(left, top_of(i), x(bar.value) - left, thickness,
             bar.is_chosen  ? "bar chosen"
             : bar.is_plain ? "bar plain"
                            : "bar",
             bar.tooltip);
  }
  // over the bars, under the texts
  if (chart.limit) {
    const double at = x(*chart.limit);
    svg.line(at, top - 6, at, bottom, "limit");
    svg.text(at, top - 10, at > svg.width() / 2 ? Anchor::kEnd : Anchor::kStart, "label", chart.limit_markup);
  }
  for (size_t i = 0; i < chart.bars.size(); ++i) {
    const Bar& bar = chart.bars[i];
    const double y = top_of(i);
    const std::string css = bar.is_chosen ? "label strong" : "label";
    if (is_above) {
      svg.text(0, y - 5, Anchor::kStart, css + " halo", escape(fit(bar.name, svg.width(), kFontSize)));
    } else {
      svg.text(left - 8, y + 12.5, Anchor::kEnd, css, escape(fit(bar.name, left - 12, kFontSize)));
    }
    svg.text(x(bar.value) + 6, y + 12.5, Anchor::kStart, css + " halo", bar.markup);
  }
}

void draw_stacked_bars(Svg& svg, const StackedBarChart& chart) {
  constexpr double kHeading = 20, kMeasured = 16, kEstimated = 8, kGap = 14, kDivider = 24;
  double highest = 0;
  for (const auto& group : chart.groups) {
    for (const auto* parts : {&group.measured, &group.estimated}) {
      double sum = 0;
      for (const auto& part : *parts) sum += part.value;
      highest = std::max(highest, sum);
    }
  }
  const double left = svg.is_narrow() ? 0 : 96, right = svg.width() - 16, top = 4;
  const double heading = svg.is_narrow() ? kHeading : 0, pitch = heading + kMeasured + 2 + kEstimated + kGap;
  const double bottom = top + pitch * static_cast<double>(chart.groups.size()) + (chart.divider_before ? kDivider : 0);
  svg.set_height(bottom + 40);

  const Axis axis = Axis::from_zero(highest, svg.is_narrow() ? 3 : 6, chart.axis_title);
  const Scale x = svg.x_axis(axis, left, right, bottom);
  for (const double tick : axis.ticks) svg.line(x(tick), top, x(tick), bottom, tick == 0 ? "base" : "grid");
  double y = top;
  const auto divide = [&](size_t before) {
    if (chart.divider_before != before) return;
    svg.line(0, y + kDivider - 12, right, y + kDivider - 12, "mark");
    svg.text(right, y + kDivider - 17, Anchor::kEnd, "label halo", chart.divider_markup);
    y += kDivider;
  };
  const auto stack = [&](const std::vector<BarPart>& parts, double thickness, const char* css) {
    double sum = 0;
    for (const auto& part : parts) {
      const double begin = x(sum), end = x(sum += part.value);
      const std::string id = kinds()[part.kind].id;
      svg.rect(begin, y, end - begin, thickness, "k-" + id + css, part.tooltip);
      if (end - begin > 2) svg.line(end, y, end, y + thickness, "seam");
    }
    y += thickness + 2;
  };
  for (size_t i = 0; i < chart.groups.size(); ++i) {
    const auto& group = chart.groups[i];
    divide(i);
    if (svg.is_narrow()) {
      svg.text(0, y + 14, Anchor::kStart, "label strong halo", group.markup);
    } else {
      svg.text(left - 10, y + 12.5, Anchor::kEnd, "label strong", group.markup);
      if (i == 0) svg.text(left - 10, y + 27, Anchor::kEnd, "label quiet small", "estimated");
    }
    y += heading;
    stack(group.measured, kMeasured, "");
    stack(group.estimated, kEstimated, " estimated");
    y += kGap - 2;
  }
  divide(chart.groups.size());
}

}  // namespace refrain::report
