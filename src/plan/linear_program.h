#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace refrain::plan {

/// Minimises cost x subject to bounds on x and on rows of a sparse matrix; some x integer.
class LinearProgram {
 public:
  static double infinite();

  /// @return index of the column.
  int32_t add_column(double cost, double lower, double upper, bool is_integer = false);
  void begin_row(double lower, double upper);
  /// Adds an entry to the row begun last; each column once.
  void add(int32_t column, double factor);

  size_t columns() const { return cost_.size(); }
  size_t rows() const { return row_lower_.size(); }

  enum class Status { kOptimal, kInfeasible, kLimit, kUnavailable };
  struct Solution {
    Status status = Status::kUnavailable;
    double cost = 0.0;
    double bound = 0.0;  ///< no solution costs less; with `kLimit` of an integer program
    std::vector<double> x;
  };
  /// Solves with one thread. @param relaxed  as if nothing had to be integer.
  Solution solve(double seconds, bool relaxed) const;

 private:
  std::vector<double> cost_, lower_, upper_, row_lower_, row_upper_, factors_;
  std::vector<int32_t> is_integer_, row_starts_, row_columns_;
};

/// Says why HiGHS cannot be used; empty if it can.
std::string why_no_linear_programs();

}  // namespace refrain::plan
