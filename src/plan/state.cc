#include "plan/state.h"

#include <algorithm>
#include <limits>

namespace refrain::plan {

using graph::Action;
using graph::kNone;

namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

}  // namespace

State::State(const Problem& problem) : p_(&problem) {
  const size_t values = problem.items.size(), places = index(problem.ends) + 1;
  touches_.resize(values);
  again_.resize(places);
  extra_.resize(places);
  value_saved_.resize(values);
  place_saved_.resize(places);
  op_mark_.resize(places);
  read_mark_.resize(values);
  seen_mark_.resize(values);
  play_mark_.resize(values);
  last_reader_.resize(values);
  here_mark_.resize(values);
  here_.resize(values);
  keep_all();
}

void State::keep_all() {
  for (auto& again : again_) again.clear();
  added_ns_ = 0;
  for (size_t v = 0; v < touches_.size(); ++v) {
    touches_[v].clear();
    if (!p_->items[v].movable) continue;
    touches_[v].push_back({p_->items[v].producer, true, false, false, false, true});
    for (const OpId place : p_->reads[static_cast<ValueId>(v)])
      touches_[v].push_back({place, false, true, false, false, true});
    touches_[v].back().stays = false;
  }
  build_tree();
}

// ---- what is where

State::Range State::range(ValueId id, size_t t) const {
  const auto& touches = touches_[index(id)];
  if (t + 1 >= touches.size()) return {};
  const Touch& from = touches[t];
  return {2 * from.place + (from.is_made || from.is_needed ? 3 : 1), 2 * touches[t + 1].place};
}

int State::find(ValueId id, OpId place) const {
  const auto& touches = touches_[index(id)];
  if (touches.size() <= 12) {
    for (size_t t = touches.size(); t-- > 0;)
      if (touches[t].place <= place) return touches[t].place == place ? static_cast<int>(t) : -1;
    return -1;
  }
  const auto at = std::lower_bound(touches.begin(), touches.end(), place,
                                   [](const Touch& touch, OpId p) { return touch.place < p; });
  return at != touches.end() && at->place == place ? static_cast<int>(at - touches.begin()) : -1;
}

/// Whether the value is resident at the start of the actions of `place`.
bool State::is_there(ValueId id, OpId place) const {
  if (p_->is_there_anyway(id, place)) return true;
  const auto& touches = touches_[index(id)];
  if (touches.size() <= 12) {
    for (size_t t = touches.size(); t-- > 0;)
      if (touches[t].place < place) return touches[t].stays;
    return false;
  }
  const auto at = std::lower_bound(touches.begin(), touches.end(), place,
                                   [](const Touch& touch, OpId p) { return touch.place < p; });
  return at != touches.begin() && (at - 1)->stays;
}

bool State::stays_after(ValueId id, OpId place) const {
  const int t = find(id, place);
  return t >= 0 && touches_[index(id)][static_cast<size_t>(t)].stays;
}

/// Whether the value is kept at the end of the actions of `place`.
bool State::is_kept_at(ValueId id, OpId place) const {
  const int t = find(id, place);
  if (t < 0) return is_there(id, place);
  const Touch& touch = touches_[index(id)][static_cast<size_t>(t)];
  return touch.is_needed || touch.stays;
}

bool State::crosses_death(ValueId id, OpId from, OpId to) const {
  return from < p_->item(id).death && p_->item(id).death <= to;
}

bool State::may_compute(ValueId id) const {
  const OpId producer = p_->item(id).producer;
  return producer != kNone && p_->op(producer).replayable;
}

bool State::can_drop(ValueId id, size_t t) const {
  return touches_[index(id)][t].stays && !range(id, t).is_empty() && may_compute(id);
}

bool State::can_stay(ValueId id, size_t t) const {
  const auto& touches = touches_[index(id)];
  if (touches[t].stays || t + 1 >= touches.size()) return false;
  const Touch& next = touches[t + 1];
  return !crosses_death(id, touches[t].place, next.place) && (next.is_needed || next.is_read || next.stays);
}

// ---- changes

void State::begin() {
  ++change_;
  levels_.push_back({saved_values_.size(), saved_places_.size(), added_.size(), added_ns_});
}

void State::commit() {
  ++change_;
  levels_.pop_back();
  if (!levels_.empty()) return;
  saved_values_.clear();
  saved_places_.clear();
  added_.clear();
}

void State::save(ValueId id) {
  if (levels_.empty() || value_saved_[index(id)] == change_) return;
  value_saved_[index(id)] = change_;
  saved_values_.push_back({id, touches_[index(id)]});
}

void State::save_place(OpId place) {
  if (levels_.empty() || place_saved_[index(place)] == change_) return;
  place_saved_[index(place)] = change_;
  saved_places_.push_back({place, again_[index(place)], extra_[index(place)]});
}

std::vector<ValueId> State::changed() const {
  std::vector<ValueId> ids;
  for (size_t k = levels_.empty() ? 0 : levels_.back().values; k < saved_values_.size(); ++k)
    ids.push_back(saved_values_[k].id);
  return ids;
}

void State::add_bytes(int32_t first, int32_t last, int64_t bytes) {
  if (first > last) return;
  tree_.add(first, last, bytes);
  if (!levels_.empty()) added_.push_back({first, last, bytes});
}

void State::rollback() {
  const Level level = levels_.back();
  while (saved_values_.size() > level.values) {
    touches_[index(saved_values_.back().id)].swap(saved_values_.back().touches);
    saved_values_.pop_back();
  }
  while (saved_places_.size() > level.places) {
    SavedPlace& saved = saved_places_.back();
    again_[index(saved.place)].swap(saved.again);
    extra_[index(saved.place)] = saved.extra;
    saved_places_.pop_back();
  }
  while (added_.size() > level.added) {
    tree_.add(added_.back().first, added_.back().last, -added_.back().bytes);
    added_.pop_back();
  }
  added_ns_ = level.ns;
  ++change_;
  levels_.pop_back();
}

bool State::drop(ValueId id, size_t t) {
  const OpId to = touches_[index(id)][t + 1].place;
  leave(id, t);
  mark(to, true);
  return run_pending();
}

bool State::stay(ValueId id, size_t t) {
  save(id);
  auto& touches = touches_[index(id)];
  const Range bytes = range(id, t);
  add_bytes(bytes.first, bytes.last, p_->item(id).bytes);
  touches[t].stays = true;
  if (touches[t].is_read || touches[t].is_again) mark(touches[t].place, false);
  mark(touches[t + 1].place, true);
  return run_pending();
}

void State::mark(OpId place, bool again) { (again ? pending_ : dirty_).push_back(place); }

/// Ends a stay; what was recomputed only for it is not any more.
void State::leave(ValueId id, size_t t) {
  save(id);
  auto& touches = touches_[index(id)];
  const Range bytes = range(id, t);
  add_bytes(bytes.first, bytes.last, -p_->item(id).bytes);
  touches[t].stays = false;
  if (touches[t].is_again)
    mark(touches[t].place, true);
  else if (touches[t].is_read)
    mark(touches[t].place, false);
}

/// Rebuilds places from late to early, as a place's closure has effects on earlier ones only.
bool State::run_pending() {
  while (!pending_.empty()) {
    const auto latest = std::max_element(pending_.begin(), pending_.end());
    const OpId place = *latest;
    pending_.erase(std::remove(pending_.begin(), pending_.end(), place), pending_.end());
    if (!rebuild(place)) {
      pending_.clear();
      dirty_.clear();
      return false;
    }
  }
  for (const OpId place : dirty_) measure(place);
  dirty_.clear();
  return true;
}

bool State::want(ValueId id, OpId place) {
  ++steps_;
  if (p_->is_there_anyway(id, place)) return true;
  if (is_there(id, place)) return true;
  if (retained_ != nullptr) {
    for (const Stay& stay : (*retained_)[index(id)])
      if (stay.from < place && place <= stay.to) return true;
  }
  const OpId producer = p_->item(id).producer;
  if (producer == kNone || producer >= place) return false;
  if (op_mark_[index(producer)] == mark_) return true;
  if (retained_ == nullptr && adopt(id, place)) return true;
  if (!p_->op(producer).replayable) return false;
  op_mark_[index(producer)] = mark_;
  fresh_.push_back(producer);
  stack_.push_back(producer);
  return true;
}

/// Staying from one place to the next costs nothing.
bool State::adopt(ValueId id, OpId place) {
  auto& touches = touches_[index(id)];
  const auto at = std::lower_bound(touches.begin(), touches.end(), place,
                                   [](const Touch& touch, OpId p) { return touch.place < p; });
  if (at == touches.begin() || place >= p_->item(id).death) return false;
  const Touch& before = *(at - 1);
  if (before.place + 1 != place || !(before.is_made || before.is_needed)) return false;
  const auto t = static_cast<size_t>(at - touches.begin());
  save(id);
  if (t == touches.size() || touches[t].place != place) touches.insert(at, {place, false, false, false, false, false});
  touches[t - 1].stays = true;
  if (touches[t - 1].is_read || touches[t - 1].is_again) mark(touches[t - 1].place, false);
  return true;
}

/// Fills `fresh_` from the wants on the stack.
bool State::close(OpId place) {
  while (!stack_.empty()) {
    const OpId op = stack_.back();
    stack_.pop_back();
    bool is_possible = fresh_.size() <= most_again_;
    for (const ValueId v : p_->op(op).inputs) is_possible = is_possible && want(v, place);
    if (!is_possible) {
      stack_.clear();
      return false;
    }
  }
  std::sort(fresh_.begin(), fresh_.end());
  return true;
}

bool State::rebuild(OpId place) {
  save_place(place);
  ++mark_;
  fresh_.clear();
  stack_.clear();
  auto& again = again_[index(place)];
  for (const ValueId v : p_->needs[place])
    if (!want(v, place)) return false;
  for (const OpId op : again)
    for (const ValueId v : p_->op(op).outputs)
      if (stays_after(v, place) && !want(v, place)) return false;
  if (!close(place)) return false;

  for (const OpId op : fresh_) {
    added_ns_ += p_->op(op).ns;
    for (const ValueId v : p_->op(op).inputs) read_mark_[index(v)] = mark_;
  }
  for (const OpId op : again) added_ns_ -= p_->op(op).ns;
  const auto update = [&](ValueId v) {
    if (seen_mark_[index(v)] == mark_ || p_->is_there_anyway(v, place)) return;
    seen_mark_[index(v)] = mark_;
    const OpId producer = p_->item(v).producer;
    const bool is_again = producer != kNone && op_mark_[index(producer)] == mark_;
    update_touch(v, place, read_mark_[index(v)] == mark_, is_again);
  };
  again.swap(fresh_);
  for (const auto* ops : {&again, &fresh_})
    for (const OpId op : *ops) {
      steps_ += 4;
      for (const ValueId v : p_->op(op).inputs) update(v);
      for (const ValueId v : p_->op(op).outputs) update(v);
    }
  measure(place);
  return true;
}

void State::update_touch(ValueId id, OpId place, bool is_read, bool is_again) {
  auto& touches = touches_[index(id)];
  int t = find(id, place);
  if (t < 0 && !is_read && !is_again) return;
  const bool ends_unread = t > 0 && touches[index(t - 1)].stays && !touches[index(t)].stays && !is_read;
  if (t >= 0 && !ends_unread && touches[index(t)].is_read == is_read && touches[index(t)].is_again == is_again) return;
  save(id);
  if (t < 0) {
    const auto at = std::lower_bound(touches.begin(), touches.end(), place,
                                     [](const Touch& touch, OpId p) { return touch.place < p; });
    const bool stays = at != touches.begin() && (at - 1)->stays;
    t = static_cast<int>(at - touches.begin());
    touches.insert(at, {place, false, false, false, false, stays});
  }
  Touch& touch = touches[index(t)];
  touch.is_read = is_read;
  touch.is_again = is_again;
  if (touch.is_needed || touch.is_read) return;
  if (!is_again)
    remove_touch(id, index(t));
  else if (t > 0 && touches[index(t - 1)].stays && !touch.stays)
    leave(id, index(t - 1));
}

void State::remove_touch(ValueId id, size_t t) {
  auto& touches = touches_[index(id)];
  if (t > 0 && touches[t - 1].stays && !touches[t].stays) leave(id, t - 1);
  touches.erase(touches.begin() + static_cast<int64_t>(t));
}

void State::measure(OpId place) {
  save_place(place);
  struct Nothing {
    void recompute(OpId, bool) {}
    void drop(ValueId) {}
  } nothing;
  const int64_t extra = play(place, nothing);
  int64_t& known = extra_[index(place)];
  add_bytes(2 * place + 1, 2 * place + 1, extra - known);
  known = extra;
}

// Notes who reads what last. @return the bytes that the closure begins with, relative to the place's second slot.
int64_t State::begin_play(OpId place) const {
  const auto& again = again_[index(place)];
  ++play_;
  int64_t bytes = 0;
  for (const OpId op : again) {
    steps_ += 4;
    for (const ValueId v : p_->op(op).inputs) {
      if (!is_movable_at(v, place)) continue;
      if (play_mark_[index(v)] != play_ && is_there(v, place) && !is_kept_at(v, place)) bytes += p_->item(v).bytes;
      play_mark_[index(v)] = play_;
      last_reader_[index(v)] = op;
    }
  }
  for (const OpId op : again)
    for (const ValueId v : p_->op(op).outputs)
      if (is_movable_at(v, place) && !is_there_in_play(v, place) && is_kept_at(v, place)) bytes -= p_->item(v).bytes;
  return bytes;
}

// ---- as a whole

void State::build_tree() {
  std::vector<int64_t> bytes = p_->fixed;
  bytes.push_back(0);
  std::vector<int64_t> change(bytes.size() + 1);
  for (size_t v = 0; v < touches_.size(); ++v)
    for (size_t t = 0; t < touches_[v].size(); ++t) {
      if (!touches_[v][t].stays) continue;
      const Range range = this->range(static_cast<ValueId>(v), t);
      if (range.is_empty()) continue;
      change[index(range.first)] += p_->items[v].bytes;
      change[index(range.last) + 1] -= p_->items[v].bytes;
    }
  bytes.pop_back();
  int64_t sum = 0;
  for (size_t s = 0; s < bytes.size(); ++s) {
    sum += change[s];
    bytes[s] += sum;
  }
  struct Nothing {
    void recompute(OpId, bool) {}
    void drop(ValueId) {}
  } nothing;
  for (OpId place = 0; place <= p_->ends; ++place) {
    extra_[index(place)] = play(place, nothing);
    bytes[2 * index(place) + 1] += extra_[index(place)];
  }
  tree_ = PeakTree(bytes);
}

}  // namespace refrain::plan
