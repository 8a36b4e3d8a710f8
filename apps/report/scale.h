#pragma once

#include <functional>
#include <string>
#include <vector>

namespace refrain::report {

/// Round numbers (1, 2 or 5 times a power of ten apart) that enclose `low` and `high`, both included: the first is at
/// most `low`, the last at least `high`; at least two, about `about` of them. `about` >= 1; finite; low <= high.
std::vector<double> round_ticks(double low, double high, int about);

/// Maps numbers to pixels, linearly or by their logarithm.
struct Scale {
  double low = 0, high = 1;  ///< numbers; low < high, and 0 < low if `is_log`
  double from = 0, to = 1;   ///< pixels of low and high
  bool is_log = false;

  double operator()(double value) const;
};

/// An axis of numbers: what it spans, and where it says so.
struct Axis {
  double low = 0, high = 1;
  std::vector<double> ticks;
  bool is_log = false;
  bool is_reversed = false;                  ///< from `high` at the left to `low`, of an x axis
  std::string title;                         ///< with the unit
  std::function<std::string(double)> label;  ///< of a tick, plain text

  /// From 0 to a round number at or over `high`.
  static Axis from_zero(double high, int about, std::string title);
  /// Between round numbers around `low` and `high`; from 0 if `low` is under 40 % of `high`.
  static Axis around(double low, double high, int about, std::string title);
  /// From `low` to `high` exactly, with the round numbers between them as ticks.
  static Axis within(double low, double high, int about, std::string title);
  /// Ticks at `values` themselves; by powers of two apart if they span more than a factor of 12.
  static Axis at_values(std::vector<double> values, std::string title);
};

/// Where labels that want to be at `wanted` go so that any two are `gap` apart, all within [low, high] if there is room,
/// in the same order, at the least sum of squared moves.
/// Source: pool adjacent violators; Barlow et al., "Statistical inference under order restrictions", 1972.
std::vector<double> spread(const std::vector<double>& wanted, double gap, double low, double high);

/// Tick label with as few decimals as the step between ticks needs.
std::string tick_label(double value, double step);

}  // namespace refrain::report
