#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/report/fields.h"
#include "apps/report/numbers.h"

namespace refrain::report {

/// What was measured of one strategy, in bench and depths documents.
struct Strategy {
  std::string name;
  int64_t after_forward_bytes = 0, peak_bytes = 0;
  double step_ms = 0, least_step_ms = 0, added_ms = 0;
  std::optional<double> spread_ms;  ///< of the step
  int64_t replayed_ops = 0;
  bool is_bit_equal = false;
};

/// The strategies of a list, the one that others are measured against first.
std::vector<Strategy> read_strategies(const Field& list);

/// The largest peak or level after forward.
int64_t largest_bytes(const std::vector<Strategy>& strategies);

/// The index with the lowest peak; ties by time, then order. @param strategies  not empty.
size_t lowest_peak(const std::vector<Strategy>& strategies);

std::string strategy_table(const std::string& caption, const std::vector<Strategy>& strategies);

}  // namespace refrain::report
