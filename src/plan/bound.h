#pragma once

#include <cstdint>
#include <string>

#include "plan/coarse.h"
#include "plan/effort.h"

namespace refrain::plan {

/// A lower bound on the added time of any schedule.
struct Bound {
  int64_t added_ns = 0;
  std::string proof = "none";
  bool is_infeasible = false;  ///< no schedule fits the budget
};

/// Lower bound on the peak of any schedule: the most bytes that must be resident while an operator of the step runs.
/// `problem` must have been made with no tiny values.
int64_t floor_bytes(const Problem& problem);

/// Bounds the added time of any schedule with a peak of at most `budget`, by what must be dropped at single places: the
/// Lagrangian bound max over prices of (least ClosureCut - price * bytes free), at the places where the baseline uses
/// most. `problem` as above. Cost: some min cuts for each place. Source: Fisher, "The Lagrangian relaxation method for
/// solving integer programming problems", 1981.
Bound cut_bound(const Problem& problem, int64_t budget, Effort& effort);

/// Bounds by the relaxation of `StageProgram` with boundaries at some of the places over budget, and at all places
/// if the graph has few operators. Cost: two or three linear programs; nothing is proven if HiGHS is missing or
/// `seconds` are over.
Bound lp_bound(const Problem& problem, int64_t budget, double seconds);

/// Bounds by integer programs of `StageProgram` with few boundaries, and what must fit between them; more boundaries
/// as long as `seconds` last and the bound is below `enough_ns`. Few boundaries at the right places prove more than
/// many under the relaxation, as half a value here and half of another there is not enough.
Bound integer_bound(const Problem& problem, int64_t budget, double seconds, int64_t enough_ns);

}  // namespace refrain::plan
