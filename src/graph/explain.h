#pragma once

#include <string>
#include <vector>

#include "graph/peak.h"

namespace refrain::graph {

/// Explains what a schedule does and why.
struct Explanation {
  /// Operators of one module path.
  struct Scope {
    std::string scope;
    std::vector<std::string> what;  ///< recomputed operators, as "3 aten::relu", most first
    int64_t runs = 0;               ///< recomputed operators
    int64_t ns = 0;                 ///< their time
    OpId first_place = kNone;       ///< where operators are recomputed; none: nowhere
    OpId last_place = kNone;
    int64_t dropped = 0;        ///< values dropped, counted each time
    int64_t freed_at_peak = 0;  ///< bytes of its values that the baseline has at its peak, and the schedule has not
  };
  /// A value that is resident at the peak.
  struct Holder {
    ValueId value = kNone;
    int64_t bytes = 0;
    std::string op, scope;      ///< of its producer; of a source, of who reads it next
    OpId made = kNone;          ///< none: a source
    OpId next_read = kNone;     ///< by an operator of the step; none: it is not read any more
    bool is_temporary = false;  ///< dead in the baseline, recomputed for others
  };

  std::string error;  ///< why the schedule cannot run; then the rest is empty
  int64_t plain_peak = 0;
  OpId plain_peak_place = 0;
  int64_t step_ns = 0;
  int64_t added_ns = 0;
  int64_t recomputed_ops = 0;
  int64_t dropped_values = 0;
  Peak peak;
  std::string peak_op, peak_scope;  ///< of what runs then, else of the operator after it; empty: the end
  /// Scopes in which something is dropped or recomputed, by bytes freed, then in the order of the step.
  std::vector<Scope> scopes;
  std::vector<Holder> holders;  ///< the largest first, at most `most`
  int64_t other_holders = 0;
  int64_t other_bytes = 0;
};

/// @param most  holders to name.
Explanation explain(const Graph& graph, const Schedule& schedule, size_t most = 12);

/// Writes some dozen lines. @param most  scopes to list.
std::string to_text(const Explanation& explanation, size_t most = 20);

/// Writes the document `explain_plan` of docs/design/report.md. Ends in a line break.
std::string to_json(const Explanation& explanation, const std::string& model);

}  // namespace refrain::graph
