/// `State` as a whole: from stays and to them, and as a schedule.
#include <algorithm>

#include "plan/state.h"

namespace refrain::plan {

using graph::Action;
using graph::kNone;

namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

/// Sorts, and makes one of what meets.
void merge(std::vector<Stay>& stays) {
  std::sort(stays.begin(), stays.end(), [](const Stay& a, const Stay& b) { return a.from < b.from; });
  size_t kept = 0;
  for (const Stay& stay : stays) {
    if (kept > 0 && stay.from <= stays[kept - 1].to)
      stays[kept - 1].to = std::max(stays[kept - 1].to, stay.to);
    else
      stays[kept++] = stay;
  }
  stays.resize(kept);
}

}  // namespace

// Computes the closure of a place, and the stays that begin there. @return false if what the place needs cannot be
// recomputed
bool State::assign_place(OpId place, const std::vector<ValueId>& begins) {
  ++mark_;
  fresh_.clear();
  stack_.clear();
  for (const ValueId v : p_->needs[place])
    if (!want(v, place)) return false;
  if (!close(place)) return false;
  for (const ValueId v : begins) {
    const std::vector<OpId> before = fresh_;
    if (p_->is_there_anyway(v, place) || (want(v, place) && close(place))) continue;
    fresh_ = before;  // it cannot begin here
    ++mark_;
    for (const OpId op : fresh_) op_mark_[index(op)] = mark_;
    stack_.clear();
  }
  again_[index(place)] = fresh_;
  return true;
}

void State::count_place(OpId place, bool retain) {
  for (const OpId op : again_[index(place)]) {
    added_ns_ += p_->op(op).ns;
    for (const ValueId v : p_->op(op).inputs)
      if (!p_->is_there_anyway(v, place)) {
        const int t = find(v, place);
        update_touch(v, place, true, t >= 0 && touches_[index(v)][index(t)].is_again);
      }
    for (const ValueId v : p_->op(op).outputs) {
      if (p_->is_there_anyway(v, place)) continue;
      const int t = find(v, place);
      update_touch(v, place, t >= 0 && touches_[index(v)][index(t)].is_read, true);
      if (!retain || !p_->item(v).movable || place >= p_->item(v).death) continue;
      const auto reads = p_->reads[v];
      if (!reads.empty() && reads.back() > place) (*retained_)[index(v)].push_back({place, reads.back()});
    }
  }
}

// Ranges of the touches are known only now.
void State::mark_stays(const std::vector<std::vector<Stay>>& stays) {
  for (size_t v = 0; v < touches_.size(); ++v)
    for (size_t t = 0; t + 1 < touches_[v].size(); ++t) {
      const OpId from = touches_[v][t].place, to = touches_[v][t + 1].place;
      if (crosses_death(static_cast<ValueId>(v), from, to)) continue;
      for (const Stay& stay : stays[v])
        if (stay.from <= from && to <= stay.to) touches_[v][t].stays = true;
    }
}

bool State::assign(const std::vector<std::vector<Stay>>& wanted, bool retain) {
  keep_all();
  for (auto& touches : touches_)
    for (Touch& touch : touches) touch.stays = false;
  std::vector<std::vector<Stay>> stays = wanted;
  for (auto& of_value : stays) merge(of_value);
  std::vector<std::vector<ValueId>> begins(index(p_->ends) + 1);
  for (size_t v = 0; v < stays.size(); ++v)
    for (const Stay& stay : stays[v])
      if (stay.from > p_->items[v].producer && stay.from <= p_->ends)
        begins[index(stay.from)].push_back(static_cast<ValueId>(v));
  retained_ = &stays;
  bool is_possible = true;
  for (OpId place = 0; place <= p_->ends && is_possible; ++place) {
    is_possible = assign_place(place, begins[index(place)]);
    if (is_possible) count_place(place, retain);
  }
  retained_ = nullptr;
  if (!is_possible) {
    keep_all();
    return false;
  }
  mark_stays(stays);
  build_tree();
  for (OpId place = p_->ends; place >= 0; --place) {
    if (p_->needs[place].empty() && again_[index(place)].empty()) continue;
    mark(place, true);
    if (!run_pending()) {
      keep_all();
      return false;
    }
  }
  return true;
}

std::vector<std::vector<Stay>> State::stays() const {
  std::vector<std::vector<Stay>> all(touches_.size());
  for (size_t v = 0; v < touches_.size(); ++v)
    for (size_t t = 0; t + 1 < touches_[v].size(); ++t) {
      if (!touches_[v][t].stays) continue;
      const Stay stay{touches_[v][t].place, touches_[v][t + 1].place};
      if (!all[v].empty() && all[v].back().to == stay.from && !touches_[v][t].is_again)
        all[v].back().to = stay.to;
      else
        all[v].push_back(stay);
    }
  return all;
}

std::vector<std::vector<Stay>> State::stays_of(const Problem& problem, const graph::Schedule& schedule) {
  std::vector<std::vector<Stay>> stays(problem.items.size());
  std::vector<OpId> since(problem.items.size(), kNone - 1);  // place at the end of which it was allocated
  const auto go = [&](ValueId v, OpId place) {
    OpId& from = since[index(v)];
    if (from > kNone - 1 && from < place) stays[index(v)].push_back({from, place});
    from = kNone - 1;
  };
  const auto come = [&](ValueId v, OpId place) {
    if (since[index(v)] == kNone - 1) since[index(v)] = place;
  };
  std::vector<std::vector<ValueId>> deaths(index(problem.ends) + 2);
  for (size_t v = 0; v < problem.items.size(); ++v)
    deaths[index(problem.items[v].death)].push_back(static_cast<ValueId>(v));
  for (OpId place = 0; place <= problem.ends; ++place) {
    for (const ValueId v : deaths[index(place)]) go(v, place - 1);
    for (const Action& action : schedule.places[index(place)]) {
      if (action.kind == Action::Kind::kDrop) {
        go(action.id, place);
        continue;
      }
      for (const ValueId v : problem.op(action.id).outputs) {
        const ValueId old = problem.graph->values[index(v)].overwrites;
        if (action.kind == Action::Kind::kRecomputeInPlace && old != kNone) go(old, place);
        come(v, place);
      }
    }
    if (place < problem.ends)
      for (const ValueId v : problem.op(place).outputs) come(v, place);
  }
  for (size_t v = 0; v < problem.items.size(); ++v) go(static_cast<ValueId>(v), problem.ends);
  return stays;
}

graph::Schedule State::schedule() const {
  graph::Schedule schedule = graph::empty_schedule(*p_->graph);
  for (size_t v = 0; v < touches_.size(); ++v)
    for (const Touch& touch : touches_[v]) {
      if (touch.stays || (!touch.is_made && !touch.is_needed)) continue;
      if (touch.place + 1 >= p_->items[v].death || touch.place >= p_->ends) continue;
      schedule.places[index(touch.place) + 1].push_back({Action::Kind::kDrop, static_cast<ValueId>(v)});
    }
  struct Writer {
    void recompute(OpId op, bool in_place) {
      actions->push_back({in_place ? Action::Kind::kRecomputeInPlace : Action::Kind::kRecompute, op});
    }
    void drop(ValueId v) { actions->push_back({Action::Kind::kDrop, v}); }
    std::vector<Action>* actions;
  };
  for (OpId place = 0; place <= p_->ends; ++place) {
    Writer writer{&schedule.places[index(place)]};
    play(place, writer);
  }
  return schedule;
}

}  // namespace refrain::plan
