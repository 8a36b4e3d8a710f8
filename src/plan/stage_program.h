#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan/blocks.h"
#include "plan/coarse.h"
#include "plan/linear_program.h"

namespace refrain::plan {

/// Chooses which values are resident over some places of the step, the *boundaries*, as a mixed integer program.
///
/// S[v,k]: value v is resident while the operator at boundary k runs. R[o,k]: operator o is recomputed, at least once,
/// in stage k, between the boundaries k - 1 and k. Minimise sum ns[o] R[o,k]  s.t.
///   S[v,k] <= S[v,k-1] + R[producer(v),k] + [made by the step in the stage]
///   R[o,k] <= S[u,k-1] + R[producer(u),k] + [made by the step in the stage]     for inputs u of o
///   1 <= the same for what the step reads in the stage
///   sum bytes[v] S[v,k] <= budget - what must be resident
/// In the relaxation a value could be recomputed bit by bit in many stages from a bit of its inputs. So Y[o,k] <= sum
/// of
/// R[o,j] over j > k, whether o is recomputed after boundary k at all, with Y[o,k] <= S[u,k] + Y[producer(u),k] and 1
/// <=
/// S[v,k] + Y[producer(v),k] for what the step reads later: then the relaxation is no weaker than the min cut at any
/// boundary. Operators that overwrite read the value as it was before; values that are dead in the baseline are
/// resident only if recomputed. Every schedule within the budget gives a solution, so that the least cost, also of the
/// relaxation, is a bound. With all places as boundaries it lacks only the bytes in use while operators are recomputed.
///
/// With `between`, X[v,k]: v is kept from boundary k - 1 to boundary k, without a break. Then S[v,k] <= X[v,k] +
/// R[producer(v),k] + [made by the step in the stage], X[v,k] <= S[v,k-1], and all X fit the budget beside what any
/// operator of the step in the stage needs, and beside what any operator that is recomputed in it reads and makes.
///
/// Source: Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", MLSys 2020; stages
/// of more than one operator, storages and overwriting are ours.
class StageProgram {
 public:
  /// `problem` must have been made with no tiny values.
  /// @param between  with the rows of X.
  StageProgram(const Problem& problem, int64_t budget, std::vector<OpId> boundaries, bool between = false);

  size_t columns() const { return program_.columns(); }
  size_t entries() const { return entries_; }

  struct Result {
    LinearProgram::Status status = LinearProgram::Status::kUnavailable;
    int64_t bound_ns = 0;
    Stays stays;    ///< of the best integer solution, if all places are boundaries; or empty
    Stays rounded;  ///< of any solution: values resident by half or more; or empty
  };
  Result solve(double seconds, bool relaxed) const;

 private:
  static constexpr int32_t kNo = -1, kYes = -2;  // instead of a column

  Stays round(const std::vector<double>& x) const;
  void find_useful();
  void add_columns();
  void add_rows();
  void add_stage_rows(size_t stage);
  void add_closure_rows(size_t boundary);
  bool is_there_in_stage(ValueId id, size_t stage) const;
  OpId begin(size_t stage) const { return stage == 0 ? graph::kNone : boundaries_[stage - 1]; }
  OpId end(size_t stage) const { return stage < boundaries_.size() ? boundaries_[stage] : p_.ends; }
  int32_t there(ValueId id, size_t boundary) const {
    return there_[boundary * p_.items.size() + static_cast<size_t>(id)];
  }
  int32_t again(OpId op, size_t stage) const {
    return again_[stage * static_cast<size_t>(p_.ends) + static_cast<size_t>(op)];
  }
  void at_most_available(int32_t column, ValueId id, size_t stage, bool dead = false, int32_t stays = kNo);
  void add_stays(size_t stage, std::vector<int32_t>& stays);
  double byte_scale() const { return 100.0 / static_cast<double>(std::max<int64_t>(1, budget_)); }
  int64_t least_bytes_again(OpId op, size_t stage) const;

  const Problem& p_;
  int64_t budget_;
  std::vector<OpId> boundaries_;
  LinearProgram program_;
  bool between_;
  double unit_ns_ = 1.0;
  size_t entries_ = 0;
  std::vector<std::vector<char>> useful_;  // by boundary, value: something from then on may need it
  std::vector<int64_t> anyway_;            // by place: bytes of what cannot move, and of no value
  std::vector<int32_t> there_, again_;
};

}  // namespace refrain::plan
