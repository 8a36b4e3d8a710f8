#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/report/scale.h"

namespace refrain::report {

inline constexpr double kFontSize = 12.5;  ///< of chart text, in the units of a chart
inline constexpr double kLine = 16;        ///< distance between lines of it

enum class Anchor { kStart, kMiddle, kEnd };

/// One drawing, built from back to front. Coordinates in pixels at its own width, y downward.
class Svg {
 public:
  explicit Svg(double width) : width_(width) {}

  double width() const { return width_; }
  bool is_narrow() const { return width_ < 500; }
  void set_height(double height) { height_ = height; }

  /// @param css  classes; of marks also `title`, plain text shown when pointed at.
  void line(double x1, double y1, double x2, double y2, std::string_view css);
  void rect(double x, double y, double width, double height, std::string_view css, std::string_view title = {});
  void path(std::string_view d, std::string_view css);
  /// @param markup  escaped text, with `Number::svg()` for numbers.
  void text(double x, double y, Anchor anchor, std::string_view css, std::string_view markup);
  /// A disc, square, diamond, triangle, ..., by `shape` modulo their number.
  void marker(size_t shape, double x, double y, double radius, std::string_view css, std::string_view title = {});

  void cross(double x, double y, double radius, std::string_view css, std::string_view title = {});

  /// Grid lines, ticks and the title of a vertical axis over its top end; the scale runs over [bottom, top].
  Scale y_axis(const Axis& axis, double left, double right, double top, double bottom);
  /// Ticks below `bottom` and the title under them; ticks that would touch are left out.
  Scale x_axis(const Axis& axis, double left, double right, double bottom);

  /// For scripts: data-* attributes of the drawing.
  void attribute(std::string_view name, std::string_view value);

  std::string str(const std::string& id, const std::string& title, const std::string& description) const;

 private:
  double width_;
  double height_ = 100;
  std::string body_;
  std::string attributes_;
};

/// "12.3": a coordinate, rounded to a tenth.
std::string coordinate(double value);

/// "M 0 0 L 1 1"
std::string polyline(const std::vector<std::pair<double, double>>& points);

/// A chart drawn three times, for wide, middle and narrow screens; style sheets show the one that fits.
/// @param id     unique on the page.
/// @param title  plain text, the visible caption.
/// @param description  plain text for those who do not see the drawing: what it shows, in a sentence or two.
std::string figure(const std::string& id, const std::string& title, const std::string& description,
                   const std::function<void(Svg&)>& draw);

}  // namespace refrain::report
