#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "graph/schedule.h"
#include "plan/coarse.h"
#include "plan/peak_tree.h"

namespace refrain::plan {

/// A retention interval: a value is kept from the end of place `from` (where it is made, read or recomputed) until
/// place `to`.
struct Stay {
  OpId from = 0, to = 0;
};

/// A schedule in the form in which solvers change it, with its exact peak and added time after each change.
///
/// Each value has *touches*: the places where it is made, read by the step, or read or made by a recomputation. Between
/// two neighbouring touches it is either kept or not; that is the only decision. A value that is not resident where it
/// is needed is recomputed right there, with everything that this reads and that is not resident (the *closure* of the
/// place), in the order of the step; a value without a later use is dropped after its last read. A change thus has
/// effects at one place, and in the bytes between two touches.
///
/// Agrees with `graph::simulate` to the byte. Source of the retention intervals: Bartan et al., "MOCCASIN: Efficient
/// Tensor Rematerialization for Neural Networks", ICML 2023; here they follow from touches, and a closure is computed,
/// not searched for.
class State {
 public:
  struct Touch {
    OpId place = 0;
    bool is_made = false;    ///< by the step
    bool is_needed = false;  ///< by the step
    bool is_read = false;    ///< by a recomputation
    bool is_again = false;   ///< made by a recomputation
    bool stays = false;      ///< kept until the next touch
  };

  /// Keeps every value until its last use. `problem` must outlive this.
  explicit State(const Problem& problem);

  const Problem& problem() const { return *p_; }
  int64_t peak() const { return tree_.most(); }
  int64_t added_ns() const { return added_ns_; }
  const PeakTree& profile() const { return tree_; }
  const std::vector<Touch>& touches(ValueId id) const { return touches_[static_cast<size_t>(id)]; }
  /// Operators that are recomputed at a place, rising.
  const std::vector<OpId>& again(OpId place) const { return again_[static_cast<size_t>(place)]; }

  /// Work so far, in steps of about the same time each.
  int64_t steps() const { return steps_; }

  /// Slots in which keeping the value after touch `t` takes bytes; empty if `first > last`.
  struct Range {
    int32_t first = 0, last = -1;
    bool is_empty() const { return first > last; }
  };
  Range range(ValueId id, size_t t) const;

  /// Index of the touch at `place`, or -1.
  int find(ValueId id, OpId place) const;

  bool can_drop(ValueId id, size_t t) const;
  bool can_stay(ValueId id, size_t t) const;

  /// Changes are made between `begin` and `commit` or `rollback`, which may be nested. @return false: not possible,
  /// roll back.
  bool drop(ValueId id, size_t t);
  /// Forbids changes that recompute more than so many operators at one place, from now on.
  void limit_closures(size_t most) { most_again_ = most; }
  bool stay(ValueId id, size_t t);
  void begin();
  void commit();
  void rollback();
  /// Values whose touches changed since the last `begin`, some more than once.
  std::vector<ValueId> changed() const;

  /// Sets the whole state. @param stays  by value; impossible ones are left out. @param retain  keep recomputed values
  /// until their last use by the step. @return false: something needed cannot be recomputed; then all is kept.
  bool assign(const std::vector<std::vector<Stay>>& stays, bool retain = false);
  /// Lists the stays from which `assign` makes this state.
  std::vector<std::vector<Stay>> stays() const;
  /// Lists the stays of a schedule that runs.
  static std::vector<std::vector<Stay>> stays_of(const Problem& problem, const graph::Schedule& schedule);

  graph::Schedule schedule() const;

 private:
  struct SavedValue {
    ValueId id;
    std::vector<Touch> touches;
  };
  struct SavedPlace {
    OpId place;
    std::vector<OpId> again;
    int64_t extra;
  };
  struct Added {
    int32_t first, last;
    int64_t bytes;
  };

  void keep_all();
  void save(ValueId id);
  void save_place(OpId place);
  void add_bytes(int32_t first, int32_t last, int64_t bytes);
  bool is_there(ValueId id, OpId place) const;
  bool stays_after(ValueId id, OpId place) const;
  bool is_kept_at(ValueId id, OpId place) const;
  bool crosses_death(ValueId id, OpId from, OpId to) const;
  bool may_compute(ValueId id) const;
  bool want(ValueId id, OpId place);
  bool adopt(ValueId id, OpId place);
  bool close(OpId place);
  bool run_pending();
  bool rebuild(OpId place);
  void update_touch(ValueId id, OpId place, bool is_read, bool is_again);
  void remove_touch(ValueId id, size_t t);
  void leave(ValueId id, size_t t);
  void measure(OpId place);
  void mark(OpId place, bool again);
  void build_tree();
  /// Runs the closure of a place. Bytes are relative to its second slot. @return their peak.
  template <typename Sink>
  int64_t play(OpId place, Sink& sink) const;
  int64_t begin_play(OpId place) const;
  bool is_movable_at(ValueId id, OpId place) const { return !p_->is_there_anyway(id, place); }
  char& is_there_in_play(ValueId id, OpId place) const;
  bool is_wanted_in_play(ValueId id, OpId place, OpId after) const;
  bool assign_place(OpId place, const std::vector<ValueId>& begins);
  void count_place(OpId place, bool retain);
  void mark_stays(const std::vector<std::vector<Stay>>& stays);

  const Problem* p_;
  std::vector<std::vector<Touch>> touches_;
  std::vector<std::vector<OpId>> again_;
  std::vector<int64_t> extra_;  // by place: peak while it runs, beyond the bytes in its second slot
  PeakTree tree_;
  int64_t added_ns_ = 0;
  size_t most_again_ = SIZE_MAX;
  mutable int64_t steps_ = 0;

  // changes that can be rolled back
  struct Level {
    size_t values, places, added;
    int64_t ns;
  };
  uint64_t change_ = 0;
  std::vector<Level> levels_;
  std::vector<uint64_t> value_saved_, place_saved_;
  std::vector<SavedValue> saved_values_;
  std::vector<SavedPlace> saved_places_;
  std::vector<Added> added_;

  // scratch
  uint64_t mark_ = 0;
  std::vector<uint64_t> op_mark_, read_mark_, seen_mark_;
  mutable uint64_t play_ = 0;
  mutable std::vector<uint64_t> play_mark_;  // last reader known in this play
  mutable std::vector<OpId> last_reader_;
  mutable std::vector<uint64_t> here_mark_;
  mutable std::vector<char> here_;
  std::vector<OpId> stack_, fresh_;
  std::vector<OpId> pending_;                           // places to rebuild, highest first
  std::vector<OpId> dirty_;                             // places to measure
  std::vector<std::vector<Stay>>* retained_ = nullptr;  // while assigning
};

inline char& State::is_there_in_play(ValueId id, OpId place) const {
  const auto v = static_cast<size_t>(id);
  if (here_mark_[v] != play_) {
    here_mark_[v] = play_;
    here_[v] = is_there(id, place);
  }
  return here_[v];
}

inline bool State::is_wanted_in_play(ValueId id, OpId place, OpId after) const {
  const auto v = static_cast<size_t>(id);
  return is_kept_at(id, place) || (play_mark_[v] == play_ && last_reader_[v] > after);
}

template <typename Sink>
int64_t State::play(OpId place, Sink& sink) const {
  const auto at = static_cast<size_t>(place);
  int64_t most = 0;
  if (place < p_->ends) most = std::max<int64_t>(0, p_->made[at] + p_->op(place).workspace);
  if (again_[at].empty()) return most;
  int64_t bytes = begin_play(place);
  const auto is_movable_here = [&](ValueId v) { return is_movable_at(v, place); };
  const auto here = [&](ValueId v) -> char& { return is_there_in_play(v, place); };
  const auto old_of = [&](ValueId v) { return p_->graph->values[static_cast<size_t>(v)].overwrites; };
  for (const OpId op : again_[at]) {
    const auto& outputs = p_->op(op).outputs;
    bool in_place = false, may = true;
    int64_t copied = 0;
    for (const ValueId v : outputs) {
      if (!p_->item(v).overwrites) continue;
      const ValueId old = old_of(v);
      in_place = true;
      may = may && is_movable_here(old) && here(old) && !is_wanted_in_play(old, place, op);
      copied += p_->item(v).bytes;
    }
    in_place = in_place && may;
    const int64_t start = bytes + (in_place ? 0 : copied);
    most = std::max({most, start, start + p_->made[static_cast<size_t>(op)] + p_->op(op).workspace});
    sink.recompute(op, in_place);
    for (const ValueId v : outputs) {
      if (in_place && p_->item(v).overwrites) {
        bytes -= p_->item(old_of(v)).bytes;
        here(old_of(v)) = false;
      }
      if (!is_movable_here(v) || here(v)) continue;
      bytes += p_->item(v).bytes;
      here(v) = true;
    }
    most = std::max(most, bytes);
    const auto drop = [&](ValueId v) {
      if (!is_movable_here(v) || !here(v) || is_wanted_in_play(v, place, op)) return;
      bytes -= p_->item(v).bytes;
      here(v) = false;
      sink.drop(v);
    };
    for (const ValueId v : p_->op(op).inputs) drop(v);
    for (const ValueId v : outputs) drop(v);
  }
  return most;
}

}  // namespace refrain::plan
