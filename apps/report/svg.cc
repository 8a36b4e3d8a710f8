#include "apps/report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <numbers>
#include <utility>

#include "apps/report/markup.h"

namespace refrain::report {
namespace {

struct Size {
  const char* name;
  double width;
};

constexpr std::array<Size, 3> kSizes{{{"wide", 960}, {"mid", 620}, {"narrow", 328}}};

constexpr std::array<const char*, 3> kAnchors{"start", "middle", "end"};

/// Corners of the marker shapes after the disc, in units of the radius; of about equal area.
std::string corners(size_t shape, double x, double y, double radius) {
  static const std::array<std::vector<std::pair<double, double>>, 5> shapes{{
      {{-0.9, -0.9}, {0.9, -0.9}, {0.9, 0.9}, {-0.9, 0.9}},
      {{0, -1.3}, {1.3, 0}, {0, 1.3}, {-1.3, 0}},
      {{0, -1.3}, {1.2, 0.8}, {-1.2, 0.8}},
      {{0, 1.3}, {1.2, -0.8}, {-1.2, -0.8}},
      {{-1.2, -0.4},
       {-0.4, -0.4},
       {-0.4, -1.2},
       {0.4, -1.2},
       {0.4, -0.4},
       {1.2, -0.4},
       {1.2, 0.4},
       {0.4, 0.4},
       {0.4, 1.2},
       {-0.4, 1.2},
       {-0.4, 0.4},
       {-1.2, 0.4}},
  }};
  std::vector<std::pair<double, double>> points;
  for (const auto& [dx, dy] : shapes[shape - 1]) points.emplace_back(x + dx * radius, y + dy * radius);
  return polyline(points) + "Z";
}

std::string with_title(const std::string& element, std::string_view attributes, std::string_view title) {
  if (title.empty()) return fmt::format("<{} {}/>\n", element, attributes);
  return fmt::format("<{0} {1}><title>{2}</title></{0}>\n", element, attributes, escape(title));
}

}  // namespace

std::string coordinate(double value) {
  const double tenths = std::round(value * 10) / 10;
  return fmt::format("{:.10g}", tenths == 0 ? 0.0 : tenths);
}

std::string polyline(const std::vector<std::pair<double, double>>& points) {
  std::string d;
  for (const auto& [x, y] : points) d += (d.empty() ? "M" : "L") + coordinate(x) + " " + coordinate(y);
  return d;
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view css) {
  fmt::format_to(std::back_inserter(body_), "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" class=\"{}\"/>\n",
                 coordinate(x1), coordinate(y1), coordinate(x2), coordinate(y2), css);
}

void Svg::rect(double x, double y, double width, double height, std::string_view css, std::string_view title) {
  body_ +=
      with_title("rect",
                 fmt::format("x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{}\"", coordinate(x), coordinate(y),
                             coordinate(std::max(width, 0.0)), coordinate(std::max(height, 0.0)), css),
                 title);
}

void Svg::path(std::string_view d, std::string_view css) {
  if (d.empty()) return;
  fmt::format_to(std::back_inserter(body_), "<path d=\"{}\" class=\"{}\"/>\n", d, css);
}

void Svg::text(double x, double y, Anchor anchor, std::string_view css, std::string_view markup) {
  fmt::format_to(std::back_inserter(body_), "<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n",
                 coordinate(x), coordinate(y), kAnchors[static_cast<size_t>(anchor)], css, markup);
}

void Svg::marker(size_t shape, double x, double y, double radius, std::string_view css, std::string_view title) {
  constexpr size_t kShapes = 6;
  if (shape % kShapes == 0) {
    body_ += with_title(
        "circle",
        fmt::format("cx=\"{}\" cy=\"{}\" r=\"{}\" class=\"{}\"", coordinate(x), coordinate(y), coordinate(radius), css),
        title);
  } else {
    body_ +=
        with_title("path", fmt::format("d=\"{}\" class=\"{}\"", corners(shape % kShapes, x, y, radius), css), title);
  }
}

void Svg::cross(double x, double y, double radius, std::string_view css, std::string_view title) {
  const auto stroke = [&](double up) { return polyline({{x - radius, y - up}, {x + radius, y + up}}); };
  body_ += with_title("path", fmt::format("d=\"{} {}\" class=\"{}\"", stroke(radius), stroke(-radius), css), title);
}

Scale Svg::y_axis(const Axis& axis, double left, double right, double top, double bottom) {
  const Scale y{.low = axis.low, .high = axis.high, .from = bottom, .to = top, .is_log = axis.is_log};
  for (const double tick : axis.ticks) {
    line(left, y(tick), right, y(tick), tick == axis.low ? "base" : "grid");
    text(left - 6, y(tick) + 4, Anchor::kEnd, "tick", escape(axis.label(tick)));
  }
  if (!axis.title.empty()) text(0, top - 14, Anchor::kStart, "axis", escape(axis.title));
  return y;
}

Scale Svg::x_axis(const Axis& axis, double left, double right, double bottom) {
  Scale x{.low = axis.low, .high = axis.high, .from = left, .to = right, .is_log = axis.is_log};
  std::vector<double> ticks = axis.ticks;
  if (axis.is_reversed) {
    std::swap(x.from, x.to);
    std::reverse(ticks.begin(), ticks.end());
  }
  double free_from = -1e9;
  for (const double tick : ticks) {
    const std::string label = axis.label(tick);
    const double half = text_width(label, kFontSize) / 2;
    line(x(tick), bottom, x(tick), bottom + 4, "base");
    if (x(tick) - half < free_from) continue;
    text(x(tick), bottom + 17, Anchor::kMiddle, "tick", escape(label));
    free_from = x(tick) + half + 6;
  }
  text((left + right) / 2, bottom + 34, Anchor::kMiddle, "axis", escape(axis.title));
  return x;
}

void Svg::attribute(std::string_view name, std::string_view value) {
  attributes_ += fmt::format(" data-{}=\"{}\"", name, escape(value));
}

std::string Svg::str(const std::string& id, const std::string& title, const std::string& description) const {
  return fmt::format(
      "<svg id=\"{0}\" viewBox=\"0 0 {1} {2}\" role=\"img\" aria-labelledby=\"{0}-t {0}-d\"{3}>\n<title id=\"{0}-t\">{4}</title>\n"
      "<desc id=\"{0}-d\">{5}</desc>\n{6}</svg>\n",
      id, coordinate(width_), coordinate(height_), attributes_, escape(title), escape(description), body_);
}

std::string figure(const std::string& id, const std::string& title, const std::string& description,
                   const std::function<void(Svg&)>& draw) {
  std::string out = fmt::format("<figure id=\"{}\">\n<figcaption>{}</figcaption>\n", id, escape(title));
  for (const Size& size : kSizes) {
    Svg svg(size.width);
    draw(svg);
    out += fmt::format("<div class=\"{}\">{}</div>\n", size.name, svg.str(id + "-" + size.name, title, description));
  }
  return out + "</figure>\n";
}

}  // namespace refrain::report
