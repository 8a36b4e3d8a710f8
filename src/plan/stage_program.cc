#include "plan/stage_program.h"

#include <algorithm>
#include <cmath>

#include "plan/must_be_there.h"

namespace refrain::plan {
namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

}  // namespace

StageProgram::StageProgram(const Problem& problem, int64_t budget, std::vector<OpId> boundaries, bool between)
    : p_(problem), budget_(budget), boundaries_(std::move(boundaries)), between_(between) {
  double total = 1.0;
  for (OpId op = 0; op < p_.ends; ++op) total += static_cast<double>(p_.op(op).ns);
  unit_ns_ = std::max(1.0, total / 1e5);
  std::vector<int64_t> change(index(p_.ends) + 3);
  for (const Problem::Item& item : p_.items) {
    if (item.movable || item.first >= item.death) continue;
    change[index(item.first)] += item.bytes;
    change[index(item.death)] -= item.bytes;
  }
  int64_t sum = 0;
  for (OpId place = 0; place <= p_.ends; ++place) {
    sum += change[index(place)];
    anyway_.push_back(sum + (place == p_.ends ? p_.graph->end_outside : p_.op(place).outside));
  }
  find_useful();
  add_columns();
  add_rows();
}

/// Goes backward from the end: what the step reads, and what operators that may have to be recomputed read.
void StageProgram::find_useful() {
  useful_.assign(boundaries_.size() + 1, std::vector<char>(p_.items.size()));
  std::vector<char> useful(p_.items.size()), op_useful(index(p_.ends));
  std::vector<ValueId> todo;
  const auto add = [&](ValueId v) {
    if (useful[index(v)]) return;
    useful[index(v)] = true;
    todo.push_back(v);
  };
  size_t boundary = boundaries_.size();
  for (OpId place = p_.ends; place >= 0; --place) {
    for (const ValueId v : p_.needs[place]) add(v);
    while (!todo.empty()) {
      const OpId producer = p_.item(todo.back()).producer;
      todo.pop_back();
      if (producer == graph::kNone || op_useful[index(producer)]) continue;
      op_useful[index(producer)] = true;
      for (const ValueId v : p_.op(producer).inputs) add(v);
    }
    if (boundary > 0 && boundaries_[boundary - 1] == place) useful_[--boundary] = useful;
  }
  useful_.back() = useful;
}

/// Whether the step makes it in the stage, or it does not move and is alive at one of the stage's places.
bool StageProgram::is_there_in_stage(ValueId id, size_t stage) const {
  const Problem::Item& item = p_.item(id);
  if (item.producer != graph::kNone && item.producer >= begin(stage) && item.producer < end(stage)) return true;
  return !item.movable && item.first <= end(stage) && item.death > begin(stage) + 1;
}

void StageProgram::add_columns() {
  const size_t boundaries = boundaries_.size(), values = p_.items.size();
  there_.assign(boundaries * values, kNo);
  again_.assign((boundaries + 1) * index(p_.ends), kNo);
  for (size_t k = 0; k < boundaries; ++k) {
    const OpId place = boundaries_[k];
    for (size_t v = 0; v < values; ++v) {
      const Problem::Item& item = p_.items[v];
      int32_t& column = there_[k * values + v];
      if (item.first > place || item.producer == graph::kNone) continue;
      if (p_.is_there_anyway(static_cast<ValueId>(v), place)) continue;
      if (!useful_[k][v]) continue;
      const bool is_dead = place >= item.death;
      if (is_dead && !p_.op(item.producer).replayable) continue;
      column = program_.add_column(0.0, 0.0, 1.0, true);
    }
    for (const ValueId v : p_.needs[place]) there_[k * values + index(v)] = kYes;
  }
  for (size_t stage = 0; stage <= boundaries; ++stage)
    for (OpId op = 0; op < end(stage); ++op) {
      if (!p_.op(op).replayable || least_bytes_again(op, stage) > budget_) continue;
      const auto& outputs = p_.op(op).outputs;
      const auto is_useful = [&](ValueId v) { return useful_[stage > 0 ? stage - 1 : 0][index(v)] != 0; };
      if (std::none_of(outputs.begin(), outputs.end(), is_useful)) continue;
      again_[stage * index(p_.ends) + index(op)] =
          program_.add_column(static_cast<double>(p_.op(op).ns) / unit_ns_, 0.0, 1.0, true);
    }
}

/// Least bytes in use while it is recomputed in the stage, whatever else is resident.
int64_t StageProgram::least_bytes_again(OpId op, size_t stage) const {
  const OpId first = std::max(begin(stage) + 1, op + 1);
  if (end(stage) - first > 8) return 0;
  int64_t least = budget_ + 1;
  for (OpId place = first; place <= end(stage); ++place) {
    int64_t bytes = anyway_[index(place)] + p_.made[index(op)] + p_.op(op).workspace;
    for (const ValueId v : p_.op(op).inputs)
      if (!p_.is_there_anyway(v, place)) bytes += p_.item(v).bytes;
    least = std::min(least, bytes);
  }
  return least;
}

/// `column` (or 1) <= what makes it available in the stage. @param dead  after its death: what was resident before that
/// does not count. @param stays  instead of what was resident before: all through the stage.
void StageProgram::at_most_available(int32_t column, ValueId id, size_t stage, bool dead, int32_t stays) {
  if (stays == kNo && !dead && is_there_in_stage(id, stage)) return;
  const OpId producer = p_.item(id).producer;
  const bool is_lost = stage == 0 || (dead && boundaries_[stage - 1] < p_.item(id).death);
  const int32_t before = stays != kNo ? stays : is_lost ? kNo : there(id, stage - 1);
  const int32_t made = producer == graph::kNone || producer >= end(stage) ? kNo : again(producer, stage);
  if (before == kYes) return;
  program_.begin_row(column == kYes ? 1.0 : 0.0, LinearProgram::infinite());
  if (column != kYes) program_.add(column, -1.0);
  if (before >= 0) program_.add(before, 1.0);
  if (made >= 0) program_.add(made, 1.0);
  entries_ += 3;
}

void StageProgram::add_stage_rows(size_t stage) {
  for (OpId place = begin(stage) + 1; place <= end(stage); ++place) {
    if (place == end(stage) && stage < boundaries_.size()) break;  // the boundary's own are `kYes`
    for (const ValueId v : p_.needs[place]) at_most_available(kYes, v, stage);
  }
  std::vector<int32_t> stays(p_.items.size(), kNo);
  if (between_ && stage > 0 && stage < boundaries_.size()) add_stays(stage, stays);
  if (stage < boundaries_.size())
    for (size_t v = 0; v < p_.items.size(); ++v)
      if (const int32_t column = there(static_cast<ValueId>(v), stage); column != kNo)
        at_most_available(column, static_cast<ValueId>(v), stage, boundaries_[stage] >= p_.items[v].death, stays[v]);
  for (OpId op = 0; op < end(stage); ++op) {
    const int32_t column = again(op, stage);
    if (column < 0) continue;
    for (const ValueId v : p_.op(op).inputs) at_most_available(column, v, stage);
  }
}

void StageProgram::add_closure_rows(size_t boundary) {
  const OpId place = boundaries_[boundary];
  std::vector<int32_t> later(index(place), kNo);
  for (OpId op = 0; op < place; ++op) {
    int32_t& column = later[index(op)];
    for (size_t stage = boundary + 1; stage <= boundaries_.size(); ++stage) {
      const int32_t once = again(op, stage);
      if (once < 0) continue;
      if (column < 0) {
        column = program_.add_column(0.0, 0.0, 1.0);
        program_.begin_row(0.0, LinearProgram::infinite());
        program_.add(column, -1.0);
      }
      program_.add(once, 1.0);
      ++entries_;
    }
  }
  const auto available = [&](int32_t column, ValueId v) {  // `kYes` stands for 1
    const Problem::Item& item = p_.item(v);
    if (!item.movable && item.death > place) return;
    const int32_t here = there(v, boundary);
    if (here == kYes || item.first > place) return;
    program_.begin_row(column == kYes ? 1.0 : 0.0, LinearProgram::infinite());
    if (column != kYes) program_.add(column, -1.0);
    if (here >= 0) program_.add(here, 1.0);
    if (item.producer != graph::kNone && later[index(item.producer)] >= 0)
      program_.add(later[index(item.producer)], 1.0);
    entries_ += 3;
  };
  for (size_t v = 0; v < p_.items.size(); ++v) {
    const auto reads = p_.reads[static_cast<ValueId>(v)];
    if (!reads.empty() && reads.back() >= place) available(kYes, static_cast<ValueId>(v));
  }
  for (OpId op = 0; op < place; ++op)
    if (later[index(op)] >= 0)
      for (const ValueId v : p_.op(op).inputs) available(later[index(op)], v);
}

/// X of the stage, which starts after a boundary and ends at one.
void StageProgram::add_stays(size_t stage, std::vector<int32_t>& stays) {
  const int32_t all = program_.add_column(0.0, 0.0, LinearProgram::infinite());
  for (size_t v = 0; v < p_.items.size(); ++v) {
    const auto id = static_cast<ValueId>(v);
    const Problem::Item& item = p_.items[v];
    if (item.bytes == 0 || there(id, stage) == kNo) continue;
    if (begin(stage) < item.death && item.death <= end(stage)) continue;
    const bool is_made = item.producer == begin(stage);
    const int32_t before = there(id, stage - 1);
    if (!is_made && before == kNo) continue;
    stays[v] = program_.add_column(0.0, 0.0, 1.0, true);
    if (is_made || before == kYes) continue;
    program_.begin_row(0.0, LinearProgram::infinite());
    program_.add(stays[v], -1.0);
    program_.add(before, 1.0);
  }
  const auto bytes = [&](ValueId v) { return static_cast<double>(p_.item(v).bytes) * byte_scale(); };
  program_.begin_row(0.0, LinearProgram::infinite());
  program_.add(all, 1.0);
  for (size_t v = 0; v < p_.items.size(); ++v)
    if (stays[v] >= 0) program_.add(stays[v], -bytes(static_cast<ValueId>(v)));
  const auto begin_row = [&](int64_t free) {
    program_.begin_row(-LinearProgram::infinite(), static_cast<double>(free) * byte_scale());
    program_.add(all, 1.0);
  };
  for (OpId place = begin(stage) + 1; place < end(stage); ++place) {
    begin_row(budget_ - must_be_there(p_, place));
    for (const ValueId v : p_.needs[place])
      if (stays[index(v)] >= 0) program_.add(stays[index(v)], -bytes(v));
  }
  for (OpId op = 0; op < end(stage); ++op) {
    if (again(op, stage) < 0) continue;
    const OpId first = std::max(begin(stage) + 1, op + 1);
    const auto least = std::min_element(anyway_.begin() + first, anyway_.begin() + end(stage) + 1);
    int64_t need = std::max<int64_t>(0, p_.made[index(op)] + p_.op(op).workspace);
    std::vector<ValueId> comes;  // resident for it alone
    for (const ValueId v : p_.op(op).inputs) {
      const Problem::Item& item = p_.item(v);
      if (!item.movable && item.first <= end(stage) && item.death > first) continue;
      need += item.bytes;
      if (stays[index(v)] >= 0) comes.push_back(v);
    }
    begin_row(budget_ - *least);
    program_.add(again(op, stage), static_cast<double>(need) * byte_scale());
    for (const ValueId v : comes) program_.add(stays[index(v)], -bytes(v));
  }
}

void StageProgram::add_rows() {
  for (size_t stage = 0; stage <= boundaries_.size(); ++stage) add_stage_rows(stage);
  for (size_t k = 0; k < boundaries_.size(); ++k) {
    add_closure_rows(k);
    const int64_t free = budget_ - must_be_there(p_, boundaries_[k]);
    int64_t sum = 0;
    for (size_t v = 0; v < p_.items.size(); ++v)
      if (there(static_cast<ValueId>(v), k) >= 0) sum += p_.items[v].bytes;
    if (sum <= free) continue;
    const double scale = 100.0 / static_cast<double>(std::max<int64_t>(1, free));
    program_.begin_row(-LinearProgram::infinite(), static_cast<double>(free) * scale);
    for (size_t v = 0; v < p_.items.size(); ++v)
      if (const int32_t column = there(static_cast<ValueId>(v), k); column >= 0) {
        program_.add(column, static_cast<double>(p_.items[v].bytes) * scale);
        ++entries_;
      }
  }
}

/// Through each stage from where it is resident (at the boundary before, or made, or first read) to where it is last
/// needed (at the boundary after, or last read).
Stays StageProgram::round(const std::vector<double>& x) const {
  const auto is_there = [&](ValueId v, size_t boundary) {
    const int32_t column = there(v, boundary);
    return column == kYes || (column >= 0 && x[index(column)] >= 0.5);
  };
  Stays stays(p_.items.size());
  for (size_t v = 0; v < p_.items.size(); ++v) {
    const auto id = static_cast<ValueId>(v);
    const Problem::Item& item = p_.items[v];
    if (item.producer == graph::kNone || !item.movable) continue;
    stays[v].push_back({item.producer, item.first});
    const auto reads = p_.reads[id];
    for (size_t stage = 0; stage <= boundaries_.size(); ++stage) {
      const auto first = std::upper_bound(reads.begin(), reads.end(), begin(stage));
      const auto last = std::upper_bound(first, reads.end(), end(stage));
      const bool is_made = item.producer >= begin(stage) && item.producer < end(stage);
      const bool is_before = stage > 0 && is_there(id, stage - 1);
      const bool is_after = stage < boundaries_.size() && is_there(id, stage);
      const OpId from = is_before ? begin(stage) : is_made ? item.producer : first != last ? *first : graph::kNone;
      const OpId to = is_after ? end(stage) : first != last ? *(last - 1) : graph::kNone;
      if (from != graph::kNone && from < to) stays[v].push_back({from, to});
    }
  }
  return stays;
}

StageProgram::Result StageProgram::solve(double seconds, bool relaxed) const {
  Result result;
  const auto solution = program_.solve(seconds, relaxed);
  result.status = solution.status;
  if (solution.status == LinearProgram::Status::kUnavailable || solution.status == LinearProgram::Status::kInfeasible)
    return result;
  const double ns = solution.bound * unit_ns_;
  result.bound_ns = std::max<int64_t>(0, static_cast<int64_t>(std::ceil(ns * (1.0 - 1e-6) - 1e-3)));
  if (!solution.x.empty()) result.rounded = round(solution.x);
  if (relaxed || solution.x.empty() || boundaries_.size() != index(p_.ends) + 1) return result;
  result.stays.resize(p_.items.size());
  for (size_t v = 0; v < p_.items.size(); ++v) {
    const Problem::Item& item = p_.items[v];
    if (item.producer == graph::kNone) continue;
    if (item.movable) result.stays[v].push_back({item.producer, item.first});
    for (size_t k = 0; k + 1 < boundaries_.size(); ++k) {
      const int32_t column = there(static_cast<ValueId>(v), k);
      const bool is_there = column == kYes || (column >= 0 && solution.x[index(column)] > 0.5);
      if (is_there) result.stays[v].push_back({static_cast<OpId>(k), static_cast<OpId>(k) + 1});
    }
  }
  return result;
}

}  // namespace refrain::plan
