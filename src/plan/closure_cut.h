#pragma once

#include <cstdint>
#include <vector>

#include "plan/coarse.h"
#include "plan/max_flow.h"

namespace refrain::plan {

/// Chooses what to keep over one place of the step and what to recompute after it, as a min cut.
///
/// Of the values made before `place`, those read at it or later are needed. Each is kept, for `keep_cost` of it, or its
/// operator is recomputed, for `run_cost`, which needs all that the operator reads. With A_v: needed, y_o: o is
/// recomputed, the cut minimises sum keep_v A_v (1 - y_o(v)) + sum run_o y_o  s.t.  A_r = 1 for needed r,  y_o <= A_u
/// for inputs u of o. An operator is paid once, however many places need it: a lower bound for any schedule. What the
/// operator at `place` reads is resident then, and so kept for nothing. A value that is dead in the baseline can be
/// resident over the place only if it was recomputed before; as a plan that is of no use, for a bound it must be
/// allowed.
class ClosureCut {
 public:
  ClosureCut(const Problem& problem, OpId place, bool keeps_dead = false);

  OpId place() const { return place_; }
  /// Movable values that may be kept over the place.
  const std::vector<ValueId>& keepable() const { return keepable_; }
  /// Dead ones, if they may be kept.
  const std::vector<ValueId>& dead() const { return dead_; }
  /// Operators that may be recomputed.
  const std::vector<OpId>& runnable() const { return runnable_; }

  void set_keep_cost(ValueId id, int64_t cost) { flow_.set_capacity(keep_arc_[static_cast<size_t>(id)], cost); }
  void set_run_cost(OpId op, int64_t cost) { flow_.set_capacity(run_arc_[static_cast<size_t>(op)], cost); }

  /// @return least cost; `MaxFlow::kInfinite` or more: not possible.
  int64_t solve() { return flow_.run(); }
  /// Results of `solve`.
  bool is_kept(ValueId id) const;
  bool runs_again(OpId op) const;
  int64_t steps() const { return flow_.steps(); }

 private:
  int32_t value_node(ValueId id);
  int32_t op_node(OpId op);
  bool is_read_there(ValueId id) const;

  const Problem& p_;
  OpId place_;
  bool keeps_dead_;
  MaxFlow flow_;
  std::vector<int32_t> value_node_, op_node_, keep_arc_, run_arc_;
  std::vector<ValueId> keepable_, dead_;
  std::vector<OpId> runnable_, todo_;
};

}  // namespace refrain::plan
