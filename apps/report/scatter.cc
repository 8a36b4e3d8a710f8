#include "apps/report/scatter.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "apps/report/markup.h"
#include "apps/report/pareto.h"

namespace refrain::report {
namespace {

constexpr double kRadius = 5;

struct Box {
  double left, top, right, bottom;

  double overlap(const Box& other) const {
    const double width = std::min(right, other.right) - std::max(left, other.left);
    const double height = std::min(bottom, other.bottom) - std::max(top, other.top);
    return width > 0 && height > 0 ? width * height : 0;
  }
  double outside(const Box& frame) const { return (right - left) * (bottom - top) - overlap(frame); }
};

struct LabelPlace {
  Box box;
  bool is_far = false;
};

/// Where the label of a point at (x, y) may go, best first.
std::vector<LabelPlace> places(double x, double y, double width) {
  std::vector<LabelPlace> list;
  const auto add = [&](double left, double middle, bool is_far) {
    list.push_back({{left, middle - 8, left + width, middle + 7}, is_far});
  };
  for (const double away : {9.0, 20.0, 36.0, 54.0, 76.0}) {
    const bool is_far = away > 9;
    for (const double dy : {0.0, -1.0, 1.0}) {
      const double shift = dy == 0 ? 0 : dy * (is_far ? away : 10);
      add(x + away, y + shift, is_far);
      add(x - away - width, y + shift, is_far);
    }
    add(x - width / 2, y - 8 - away, is_far);
    add(x - width / 2, y + 8 + away, is_far);
  }
  return list;
}

class Labels {
 public:
  Labels(Box frame, std::vector<Box> taken) : frame_(frame), taken_(std::move(taken)) {}

  LabelPlace place(double x, double y, double width) {
    LabelPlace best;
    double least = std::numeric_limits<double>::infinity();
    for (const LabelPlace& place : places(x, y, width)) {
      double cost = 20 * place.box.outside(frame_);
      for (const Box& box : taken_) cost += place.box.overlap(box);
      if (cost < least) {
        least = cost;
        best = place;
      }
      if (cost == 0) break;
    }
    taken_.push_back(best.box);
    return best;
  }

 private:
  Box frame_;
  std::vector<Box> taken_;
};

std::vector<std::pair<double, double>> staircase(const std::vector<ScatterPoint>& points,
                                                 const std::vector<size_t>& front, const Scale& x, const Scale& y,
                                                 double right, double top) {
  std::vector<std::pair<double, double>> line;
  // by memory upward, so by time downward: from the far right to the top
  for (const size_t i : front) {
    const double px = x(points[i].time), py = y(points[i].memory);
    line.emplace_back(line.empty() ? right : line.back().first, py);
    line.emplace_back(px, py);
  }
  if (!line.empty()) line.emplace_back(line.back().first, top);
  return line;
}

}  // namespace

void draw_scatter(Svg& svg, const std::vector<ScatterPoint>& points, const Axis& time, const Axis& memory) {
  const double left = svg.is_narrow() ? 46 : 64, right = svg.width() - 14, top = 38;
  const double bottom = top + (svg.is_narrow() ? 270 : 340);
  svg.set_height(bottom + 44);
  const Scale y = svg.y_axis(memory, left, right, top, bottom);
  const Scale x = svg.x_axis(time, left, right, bottom);

  std::vector<Cost> costs;
  for (const auto& point : points) costs.push_back({point.memory, point.time});
  const std::vector<size_t> front = pareto_front(costs);
  const auto stairs = staircase(points, front, x, y, right, top);
  svg.path(polyline(stairs), "front");

  std::vector<Box> taken;
  for (size_t i = 1; i < stairs.size(); ++i) {
    const auto [left_x, right_x] = std::minmax(stairs[i - 1].first, stairs[i].first);
    const auto [top_y, bottom_y] = std::minmax(stairs[i - 1].second, stairs[i].second);
    taken.push_back({left_x - 1, top_y - 1, right_x + 1, bottom_y + 1});
  }
  for (const auto& point : points) {
    const double px = x(point.time), py = y(point.memory);
    taken.push_back({px - kRadius - 1, py - kRadius - 1, px + kRadius + 1, py + kRadius + 1});
  }
  Labels labels({left + 2, top - 8, right, bottom - 1}, std::move(taken));
  // those of the front choose first
  std::vector<size_t> order = front;
  for (size_t i = 0; i < points.size(); ++i) {
    if (std::find(front.begin(), front.end(), i) == front.end()) order.push_back(i);
  }
  for (const size_t i : order) {
    const bool is_front = std::find(front.begin(), front.end(), i) != front.end();
    const double px = x(points[i].time), py = y(points[i].memory);
    const std::string name = fit(points[i].name, svg.is_narrow() ? 130 : 220, kFontSize);
    const double width = text_width(name, kFontSize);
    const LabelPlace place = labels.place(px, py, width);
    const double middle = (place.box.top + place.box.bottom) / 2;
    if (place.is_far) {
      const double end = std::clamp(px, place.box.left, place.box.right);
      svg.line(px, py, end,
               middle < py - 8   ? place.box.bottom - 2
               : middle > py + 8 ? place.box.top + 2
                                 : middle,
               "leader");
    }
    svg.marker(points[i].is_plain ? 1 : 0, px, py, kRadius, is_front ? "point on" : "point off", points[i].tooltip);
    const bool is_left = place.box.right <= px;
    const bool is_right = place.box.left >= px;
    svg.text(is_left    ? place.box.right
             : is_right ? place.box.left
                        : (place.box.left + place.box.right) / 2,
             middle + 4,
             is_left    ? Anchor::kEnd
             : is_right ? Anchor::kStart
                        : Anchor::kMiddle,
             is_front ? "label halo strong" : "label halo", escape(name));
  }
}

}  // namespace refrain::report
