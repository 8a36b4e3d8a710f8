#pragma once

#include <string>
#include <vector>

#include "graph/peak.h"

namespace refrain::graph {

/// What a schedule does and why, for readers.
struct Explanation {
  /// Operators of one module path.
  struct Scope {
    std::string scope;
    std::vector<std::string> what;  ///< operators that run again, as "3 aten::relu", most first
    int64_t runs = 0;               ///< of operators again
    int64_t ns = 0;                 ///< that takes
    OpId first_place = kNone;       ///< where operators run again; none: they do not
    OpId last_place = kNone;
    int64_t dropped = 0;        ///< values, counted as often as they are
    int64_t freed_at_peak = 0;  ///< bytes of its values that the plain step has at its peak, and the schedule has not
  };
  /// A value that is there at the peak.
  struct Holder {
    ValueId value = kNone;
    int64_t bytes = 0;
    std::string op, scope;      ///< of its producer; of a source, of who reads it next
    OpId made = kNone;          ///< none: a source
    OpId next_read = kNone;     ///< by an operator of the step; none: it is not read any more
    bool is_temporary = false;  ///< dead in a plain run, recomputed for others
  };

  std::string error;  ///< why the schedule cannot run; then there is no more
  int64_t plain_peak = 0;
  OpId plain_peak_place = 0;
  int64_t step_ns = 0;
  int64_t added_ns = 0;
  int64_t recomputed_ops = 0;
  int64_t dropped_values = 0;
  Peak peak;
  std::string peak_op, peak_scope;  ///< of what runs then, else of the operator after it; empty: the end
  /// Those in which something is dropped or runs again, by bytes freed, then in the order of the step.
  std::vector<Scope> scopes;
  std::vector<Holder> holders;  ///< the largest first, at most `most`
  int64_t other_holders = 0;
  int64_t other_bytes = 0;
};

/// @param most  holders to name.
Explanation explain(const Graph& graph, const Schedule& schedule, size_t most = 12);

/// Some dozen lines. @param most  scopes to list.
std::string to_text(const Explanation& explanation, size_t most = 20);

}  // namespace refrain::graph
