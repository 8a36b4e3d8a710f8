#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/saturating.h"
#include "graph/peak.h"
#include "graph/schedule.h"

namespace refrain::graph {
namespace {

/// Values by place: those of place p are `ids[first[p]]` to before `ids[first[p + 1]]`.
class ByPlace {
 public:
  template <typename Place>
  ByPlace(const Graph& graph, Place place_of) : first_(graph.ops.size() + 2) {
    for (const Value& value : graph.values)
      if (const OpId place = place_of(value); place != kNone) ++first_[static_cast<size_t>(place) + 1];
    for (size_t p = 1; p < first_.size(); ++p) first_[p] += first_[p - 1];
    ids_.resize(first_.back());
    std::vector<uint32_t> next(first_.begin(), first_.end() - 1);
    for (size_t v = 0; v < graph.values.size(); ++v)
      if (const OpId place = place_of(graph.values[v]); place != kNone)
        ids_[next[static_cast<size_t>(place)]++] = static_cast<ValueId>(v);
  }

  const ValueId* begin(size_t place) const { return ids_.data() + first_[place]; }
  const ValueId* end(size_t place) const { return ids_.data() + first_[place + 1]; }

 private:
  std::vector<uint32_t> first_;
  std::vector<ValueId> ids_;
};

class Run {
 public:
  Run(const Graph& graph, const Schedule& schedule)
      : graph_(graph),
        schedule_(schedule),
        births_(graph, [](const Value& v) { return v.producer == kNone ? v.birth : kNone; }),
        deaths_(graph, [](const Value& v) { return v.death; }),
        there_(graph.values.size()),
        overwritten_(graph.values.size()) {
    for (const Value& value : graph.values)
      if (value.overwrites != kNone) overwritten_[static_cast<size_t>(value.overwrites)] = true;
  }

  Simulation simulate() {
    const size_t end = graph_.ops.size();
    if (schedule_.places.size() != end + 1)
      return failed(fmt::format("found a schedule of {} places; expected {}, one for each operator and the end",
                                schedule_.places.size(), end + 1));
    result_.in_use.reserve(end + 1);
    result_.peaks.reserve(end + 1);
    for (size_t i = 0; i <= end; ++i) {
      place_ = static_cast<OpId>(i);
      place_peak_ = std::numeric_limits<int64_t>::min();
      if (!begin_place() || !act() || !(i < end ? run_op() : finish())) return failed(error_);
      result_.peaks.push_back(place_peak_);
    }
    return std::move(result_);
  }

  /// Finds the peak, after `simulate` of an equal `Run`.
  Peak peak_at(int64_t moment) {
    wanted_moment_ = moment;
    simulate();
    return std::move(peak_);
  }
  int64_t peak_moment() const { return peak_moment_; }

  std::vector<ValueId> there_at(OpId place) {
    wanted_place_ = place;
    simulate();
    return std::move(peak_.there);
  }

 private:
  static Simulation failed(std::string error) {
    Simulation failure;
    failure.error = std::move(error);
    return failure;
  }

  const Value& value(ValueId id) const { return graph_.values[static_cast<size_t>(id)]; }
  const Op& op(OpId id) const { return graph_.ops[static_cast<size_t>(id)]; }
  bool is_there(ValueId id) const { return there_[static_cast<size_t>(id)]; }
  bool at_end() const { return static_cast<size_t>(place_) == graph_.ops.size(); }
  bool outlives(ValueId id) const {
    return static_cast<size_t>(value(id).death) == graph_.ops.size() && !overwritten_[static_cast<size_t>(id)];
  }
  bool is_alive(ValueId id) const {
    return first_place(value(id)) <= place_ && (place_ < value(id).death || (at_end() && outlives(id)));
  }

  /// Bytes in use at some moment: of resident values and `outside`, and of what runs.
  void see(int64_t outside, OpId running = kNone, int64_t made = 0, int64_t workspace = 0) {
    const int64_t bytes = bytes_ + outside + made + workspace;
    place_peak_ = std::max(place_peak_, bytes);
    if (++moment_ == wanted_moment_) note({bytes, place_, running, in_recompute_, {}, outside, made, workspace});
    if (bytes <= result_.peak) return;
    result_.peak = bytes;
    result_.peak_place = place_;
    result_.peak_in_recompute = in_recompute_;
    peak_moment_ = moment_;
  }

  void note(Peak peak) {
    peak_ = std::move(peak);
    peak_.there = there();
  }

  std::vector<ValueId> there() const {
    std::vector<ValueId> ids;
    for (size_t v = 0; v < there_.size(); ++v)
      if (there_[v]) ids.push_back(static_cast<ValueId>(v));
    return ids;
  }

  void come(ValueId id) {
    there_[static_cast<size_t>(id)] = true;
    bytes_ += value(id).bytes;
  }

  void go(ValueId id) {
    there_[static_cast<size_t>(id)] = false;
    bytes_ -= value(id).bytes;
  }

  bool refuse(std::string error) {
    error_ = at_end() ? fmt::format("at the end: {}", error)
                      : fmt::format("before operator {} '{}': {}", place_, op(place_).name, error);
    return false;
  }

  bool begin_place() {
    const size_t p = static_cast<size_t>(place_);
    for (const ValueId* v = births_.begin(p); v != births_.end(p); ++v)
      if (!take_over(*v)) return false;
    see(at_end() ? graph_.end_gap : op(place_).gap);
    for (const ValueId* v = deaths_.begin(p); v != deaths_.end(p); ++v)
      if (is_there(*v) && !is_alive(*v)) go(*v);
    outside_ = at_end() ? graph_.end_outside : op(place_).outside;
    return true;
  }

  /// Allocates a new value; if it took over a storage, frees the value that had it.
  bool take_over(ValueId id) {
    const ValueId old = value(id).overwrites;
    if (old != kNone) {
      if (!is_there(old))
        return refuse(fmt::format(
            "value {} took over the storage of value {}, which has been dropped; keep or recompute it", id, old));
      go(old);
    }
    come(id);
    return true;
  }

  bool act() {
    for (const Action& action : schedule_.places[static_cast<size_t>(place_)]) {
      const bool done = action.kind == Action::Kind::kDrop               ? drop(action.id)
                        : action.kind == Action::Kind::kRecompute        ? recompute(action.id, false)
                        : action.kind == Action::Kind::kRecomputeInPlace ? recompute(action.id, true)
                                                                         : refuse("found an action of an unknown kind");
      if (!done) return false;
    }
    result_.in_use.push_back(bytes_ + outside_);
    see(outside_);
    if (place_ == wanted_place_) peak_.there = there();
    return true;
  }

  bool drop(ValueId id) {
    if (id < 0 || static_cast<size_t>(id) >= graph_.values.size())
      return refuse(
          fmt::format("drops value {}; expected 0 to {}", id, static_cast<int64_t>(graph_.values.size()) - 1));
    if (!is_there(id)) return refuse(fmt::format("drops value {}, which is not resident", id));
    if (!value(id).evictable && is_alive(id))
      return refuse(fmt::format("drops value {}, which is alive and not evictable", id));
    go(id);
    return true;
  }

  bool recompute(OpId id, bool in_place) {
    if (!may_recompute(id, in_place)) return false;
    const Op& again = op(id);
    int64_t copied = 0, made = 0;
    for (const ValueId v : again.outputs) {
      const bool overwrites = value(v).overwrites != kNone;
      if (!overwrites) made += value(v).bytes;
      if (overwrites && !in_place) copied += value(v).bytes;
    }
    in_recompute_ = true;
    see_run(id, copied, made);
    for (const ValueId v : again.outputs) {
      if (in_place && value(v).overwrites != kNone) go(value(v).overwrites);
      if (!is_there(v)) come(v);
    }
    see(outside_);
    in_recompute_ = false;
    result_.added_ns = saturating_add(result_.added_ns, again.ns);
    ++result_.recomputed_ops;
    return true;
  }

  /// An operator's run. Negative workspace does not lower the moment before it.
  void see_run(OpId id, int64_t copied, int64_t made) {
    const int64_t workspace = op(id).workspace;
    if (made + workspace < 0)
      see(outside_, id, copied);
    else
      see(outside_, id, copied + made, workspace);
  }

  bool may_recompute(OpId id, bool in_place) {
    if (id < 0 || id >= place_)
      return refuse(fmt::format("recomputes operator {}; expected one that has run, 0 to {}", id, place_ - 1));
    const Op& again = op(id);
    const auto name = [&] { return fmt::format("recomputes operator {} '{}'", id, again.name); };
    if (!again.replayable) return refuse(name() + ", which cannot be recomputed");
    for (const ValueId v : again.inputs)
      if (!is_there(v)) return refuse(fmt::format("{}, which reads value {}, which is not resident", name(), v));
    if (!in_place) return true;
    bool overwrites = false;
    for (const ValueId v : again.outputs) {
      const ValueId old = value(v).overwrites;
      if (old != kNone && !is_there(old))
        return refuse(fmt::format("{} in place of value {}, which is not resident", name(), old));
      overwrites = overwrites || old != kNone;
    }
    return overwrites || refuse(name() + " in place, but it overwrites nothing");
  }

  bool run_op() {
    const Op& now = op(place_);
    for (const ValueId v : now.inputs)
      if (!is_there(v)) return refuse(fmt::format("it reads value {}, which has been dropped; recompute it", v));
    int64_t made = 0;
    for (const ValueId v : now.outputs)
      if (value(v).overwrites == kNone) made += value(v).bytes;
    see_run(place_, 0, made);
    for (const ValueId v : now.outputs)
      if (!take_over(v)) return false;
    return true;
  }

  bool finish() {
    for (const ValueId* v = deaths_.begin(graph_.ops.size()); v != deaths_.end(graph_.ops.size()); ++v)
      if (outlives(*v) && !is_there(*v))
        return refuse(fmt::format("value {} outlives the step and has been dropped; recompute it", *v));
    return true;
  }

  const Graph& graph_;
  const Schedule& schedule_;
  const ByPlace births_, deaths_;
  std::vector<char> there_;
  std::vector<char> overwritten_;  // at some time
  OpId place_ = 0;
  int64_t bytes_ = 0;    // of resident values
  int64_t outside_ = 0;  // of no value
  int64_t place_peak_ = 0;
  bool in_recompute_ = false;
  int64_t moment_ = 0, peak_moment_ = 0, wanted_moment_ = 0;
  OpId wanted_place_ = kNone;
  Peak peak_;
  std::string error_;
  Simulation result_;
};

}  // namespace

Schedule empty_schedule(const Graph& graph) {
  Schedule schedule;
  schedule.places.resize(graph.ops.size() + 1);
  return schedule;
}

Simulation simulate(const Graph& graph, const Schedule& schedule) { return Run(graph, schedule).simulate(); }

Peak find_peak(const Graph& graph, const Schedule& schedule) {
  Run run(graph, schedule);
  run.simulate();
  return Run(graph, schedule).peak_at(run.peak_moment());
}

std::vector<ValueId> values_there(const Graph& graph, const Schedule& schedule, OpId place) {
  return Run(graph, schedule).there_at(place);
}

}  // namespace refrain::graph
