#include "plan/search.h"

#include <algorithm>
#include <cmath>
#include <queue>

namespace refrain::plan {
namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

}  // namespace

void Search::spend() {
  effort_.spend(state_.steps() - counted_ + 8);
  counted_ = state_.steps();
}

void Search::note() {
  if (frontier_ != nullptr) frontier_->add(state_, name_, spacing_);
}

/// Drops a value after a touch. Then everything that its recomputation computes on the way may be kept until its next
/// use, where the budget allows.
bool Search::drop_and_retain(ValueId id, size_t t, int64_t budget, bool retain) {
  const OpId place = state_.touches(id)[t + 1].place;
  const int32_t slot = 2 * place + 1;
  const int64_t before = std::max(budget, state_.profile().at(slot));
  if (!state_.drop(id, t)) return false;
  if (state_.profile().at(slot) > before) return false;
  if (!retain) return true;
  const std::vector<OpId> again = state_.again(place);
  for (size_t k = again.size(); k-- > 0;) {
    for (const ValueId v : state_.problem().op(again[k]).outputs) {
      const int at = state_.find(v, place);
      if (at < 0 || !state_.can_stay(v, index(at)) || !state_.touches(v)[index(at) + 1].is_again) continue;
      const State::Range range = state_.range(v, index(at));
      if (state_.profile().most(range.first, range.last) + state_.problem().item(v).bytes > budget) continue;
      const int64_t ns = state_.added_ns();
      state_.begin();
      const bool helps = state_.stay(v, index(at)) && state_.added_ns() < ns;
      helps ? state_.commit() : state_.rollback();
    }
  }
  return true;
}

void Search::weigh(int64_t budget, double exponent) {
  const auto bytes = state_.profile().all(state_.problem().fixed.size());
  const double most = static_cast<double>(std::max<int64_t>(1, state_.peak() - budget));
  weights_.assign(bytes.size() + 1, 0.0);
  for (size_t s = 0; s < bytes.size(); ++s) {
    const int64_t over = bytes[s] - budget;
    const double weight = over <= 0         ? 0.0
                          : exponent == 0.0 ? 1.0
                                            : std::pow(static_cast<double>(over) / most, exponent);
    weights_[s + 1] = weights_[s] + weight;
  }
  effort_.spend(static_cast<int64_t>(bytes.size()) / 4);
}

/// Time that a drop adds, without what its operator needs: nothing if that is recomputed in any case.
double Search::estimate(ValueId id, size_t t) const {
  if (state_.touches(id)[t + 1].is_again) return 0.0;
  return static_cast<double>(state_.problem().op(state_.problem().item(id).producer).ns);
}

double Search::benefit(ValueId id, size_t t) const {
  const State::Range range = state_.range(id, t);
  if (range.is_empty()) return 0.0;
  return static_cast<double>(state_.problem().item(id).bytes) *
         (weights_[index(range.last) + 1] - weights_[index(range.first)]);
}

bool Search::descend(int64_t budget, const DescendOptions& options) {
  while (state_.peak() > budget && !effort_.is_over()) {
    const int64_t peak = state_.peak(), ns = state_.added_ns();
    // long closures are costly to examine, and useless as long as there is another way
    state_.limit_closures(
        std::max<size_t>(256, 3 * static_cast<size_t>(std::sqrt(static_cast<double>(state_.problem().ends)))));
    const bool fits = descend_by_heap(budget, options);
    state_.limit_closures(SIZE_MAX);
    if (fits) break;
    if (effort_.is_over() || !options.to_the_end) break;
    if (descend_at_peak(budget, options)) break;
    if (state_.peak() == peak && state_.added_ns() == ns) break;
  }
  return state_.peak() <= budget;
}

bool Search::descend_by_heap(int64_t budget, const DescendOptions& options) {
  weigh(budget, options.exponent);
  std::priority_queue<Scored> heap;
  const auto push = [&](ValueId v, size_t t, double ns) {
    const double gain = benefit(v, t);
    if (gain > 0.0) heap.push({(ns + 1.0) / gain, v, state_.touches(v)[t].place, ns});
  };
  const auto push_all = [&](ValueId v) {
    for (size_t t = 0; t + 1 < state_.touches(v).size(); ++t)
      if (state_.can_drop(v, t)) push(v, t, estimate(v, t));
  };
  for (size_t v = 0; v < state_.problem().items.size(); ++v) push_all(static_cast<ValueId>(v));
  int64_t drops = 0, next_weighing = 8;
  while (state_.peak() > budget && !heap.empty() && !effort_.is_over()) {
    const Scored best = heap.top();
    heap.pop();
    effort_.spend(4);
    const int t = state_.find(best.id, best.place);
    if (t < 0 || index(t) + 1 >= state_.touches(best.id).size() || !state_.can_drop(best.id, index(t))) continue;
    const double gain = benefit(best.id, index(t));
    if (gain <= 0.0) continue;
    // weights have changed since, mostly: cheap to see without trying
    if (const double known = (best.ns + 1.0) / gain; !heap.empty() && known > heap.top().score * 1.02) {
      heap.push({known, best.id, best.place, best.ns});
      continue;
    }
    const int64_t before = state_.added_ns();
    state_.begin();
    const bool is_possible = drop_and_retain(best.id, index(t), budget, options.retain);
    spend();
    if (!is_possible) {
      state_.rollback();
      continue;
    }
    const auto ns = static_cast<double>(state_.added_ns() - before);
    const double score = (ns + 1.0) / gain;
    if (ns > best.ns * 1.001 && !heap.empty() && score > heap.top().score * 1.02) {
      state_.rollback();
      heap.push({score, best.id, best.place, ns});
      continue;
    }
    const auto changed = state_.changed();
    state_.commit();
    note();
    if (++drops >= next_weighing) {
      weigh(budget, options.exponent);
      next_weighing = drops + std::max<int64_t>(4, drops / 16);
    }
    for (const ValueId v : changed) {
      // a stay cut in two: the first part is known by its place, unless it has become cheap; the others are not
      for (size_t k = 0; k + 1 < state_.touches(v).size(); ++k)
        if ((state_.touches(v)[k + 1].is_again || (k > 0 && !state_.touches(v)[k].is_needed)) && state_.can_drop(v, k))
          push(v, k, estimate(v, k));
    }
  }
  return state_.peak() <= budget;
}

void Search::collect_covering(int32_t slot, std::vector<Scored>& found) const {
  const Problem& problem = state_.problem();
  for (size_t v = 0; v < problem.items.size(); ++v) {
    const auto id = static_cast<ValueId>(v);
    const auto& touches = state_.touches(id);
    if (touches.size() < 2 || 2 * touches.front().place > slot || 2 * touches.back().place < slot) continue;
    for (size_t t = 0; t + 1 < touches.size(); ++t) {
      if (2 * touches[t + 1].place < slot) continue;
      const State::Range range = state_.range(id, t);
      if (range.first > slot) break;
      if (range.last >= slot && state_.can_drop(id, t)) found.push_back({estimate(id, t), id, touches[t].place});
      break;
    }
  }
}

/// Where the heap's drops would each lift another slot over the budget: tries anything that lowers the peak.
bool Search::descend_at_peak(int64_t budget, const DescendOptions& options) {
  std::vector<Scored> found;
  while (state_.peak() > budget && !effort_.is_over()) {
    const int64_t peak = state_.peak();
    const int32_t slot = state_.profile().most_at();
    found.clear();
    collect_covering(slot, found);
    effort_.spend(static_cast<int64_t>(state_.problem().items.size()) / 4);
    Scored best{};
    double best_score = -1.0;
    for (const Scored& gap : found) {
      const auto t = index(state_.find(gap.id, gap.place));
      const int64_t before = state_.added_ns();
      state_.begin();
      const bool done = drop_and_retain(gap.id, t, peak - 1, options.retain) && state_.profile().at(slot) < peak;
      const double score =
          (static_cast<double>(state_.added_ns() - before) + 1.0) /
          static_cast<double>(std::max<int64_t>(1, std::min(state_.problem().item(gap.id).bytes, peak - budget)));
      state_.rollback();
      spend();
      if (done && (best_score < 0.0 || score < best_score)) {
        best_score = score;
        best = gap;
      }
      if (effort_.is_over()) break;
    }
    if (best_score < 0.0) return false;
    state_.begin();
    drop_and_retain(best.id, index(state_.find(best.id, best.place)), peak - 1, options.retain);
    state_.commit();
    note();
  }
  return state_.peak() <= budget;
}

void Search::refill(int64_t budget) {
  struct Gain {
    double density;
    ValueId id;
    OpId place;
  };
  std::vector<Gain> gains;
  for (int pass = 0; pass < 8 && !effort_.is_over(); ++pass) {
    gains.clear();
    for (size_t v = 0; v < state_.problem().items.size() && !effort_.is_over(); ++v) {
      const auto id = static_cast<ValueId>(v);
      for (size_t t = 0; t + 1 < state_.touches(id).size(); ++t) {
        if (!state_.can_stay(id, t)) continue;
        const State::Range range = state_.range(id, t);
        if (state_.profile().most(range.first, range.last) + state_.problem().item(id).bytes > budget) continue;
        const int64_t before = state_.added_ns();
        state_.begin();
        const bool fits = state_.stay(id, t) && state_.peak() <= budget;
        const int64_t gain = before - state_.added_ns();
        state_.rollback();
        spend();
        if (fits && gain > 0)
          gains.push_back({static_cast<double>(gain) / static_cast<double>(state_.problem().item(id).bytes), id,
                           state_.touches(id)[t].place});
      }
    }
    if (gains.empty()) return;
    std::stable_sort(gains.begin(), gains.end(), [](const Gain& a, const Gain& b) { return a.density > b.density; });
    bool changed = false;
    for (const Gain& gain : gains) {
      const int t = state_.find(gain.id, gain.place);
      if (t < 0 || !state_.can_stay(gain.id, index(t))) continue;
      const int64_t before = state_.added_ns();
      state_.begin();
      const bool helps = state_.stay(gain.id, index(t)) && state_.peak() <= budget && state_.added_ns() < before;
      helps ? state_.commit() : state_.rollback();
      changed = changed || helps;
      if (helps) note();
      spend();
    }
    if (!changed) return;
  }
}

/// Makes the cheapest drops at the peak until it fits, for at most `most_ns` in all.
bool Search::repair(int64_t budget, int64_t most_ns, Gap except) {
  constexpr size_t kTried = 6;
  std::vector<Scored> found;
  for (int drops = 0; drops < 12 && state_.peak() > budget; ++drops) {
    const int32_t slot = state_.profile().most_at();
    const int64_t over = state_.peak() - budget;
    found.clear();
    collect_covering(slot, found);
    effort_.spend(static_cast<int64_t>(state_.problem().items.size()) / 4);
    for (Scored& gap : found)
      gap.score = (gap.score + 1.0) / static_cast<double>(std::min(over, state_.problem().item(gap.id).bytes));
    const size_t tried = std::min(kTried, found.size());
    std::partial_sort(found.begin(), found.begin() + static_cast<int64_t>(tried), found.end(),
                      [](const Scored& a, const Scored& b) { return b < a; });
    double best_score = -1.0;
    Scored best{};
    for (size_t k = 0; k < tried; ++k) {
      if (found[k].id == except.id && found[k].place == except.place) continue;
      const int64_t before = state_.added_ns();
      state_.begin();
      const auto t = index(state_.find(found[k].id, found[k].place));
      const bool done = drop_and_retain(found[k].id, t, budget, true);
      const double ns = static_cast<double>(state_.added_ns() - before) + 1.0;
      const double score = ns / static_cast<double>(std::min(over, state_.problem().item(found[k].id).bytes));
      state_.rollback();
      spend();
      if (done && (best_score < 0.0 || score < best_score)) {
        best_score = score;
        best = found[k];
      }
    }
    if (best_score < 0.0) return false;
    drop_and_retain(best.id, index(state_.find(best.id, best.place)), budget, true);
    if (state_.added_ns() >= most_ns) return false;
  }
  return state_.peak() <= budget;
}

std::vector<Search::Gap> Search::gaps() {
  std::vector<Gap> gaps;
  for (size_t v = 0; v < state_.problem().items.size(); ++v)
    for (size_t t = 0; t + 1 < state_.touches(static_cast<ValueId>(v)).size(); ++t)
      if (state_.can_stay(static_cast<ValueId>(v), t))
        gaps.push_back({static_cast<ValueId>(v), state_.touches(static_cast<ValueId>(v))[t].place});
  effort_.spend(static_cast<int64_t>(state_.problem().items.size()));
  return gaps;
}

/// Keeps values over one or two gaps and drops others for that; rolls back unless less than `most_ns` is added then.
/// @return whether the change was kept.
bool Search::exchange(int64_t budget, int64_t most_ns, const std::vector<Gap>& gaps, std::mt19937_64& dice) {
  state_.begin();
  const int stays = dice() % 3 == 0 ? 2 : 1;
  Gap last{graph::kNone, 0};
  bool done = false;
  size_t at = dice() % gaps.size();
  for (int k = 0; k < stays; ++k) {
    const Gap gap = gaps[at];
    at = (at + 1 + dice() % 4) % gaps.size();
    const int t = state_.find(gap.id, gap.place);
    if (t < 0 || !state_.can_stay(gap.id, index(t))) continue;
    state_.begin();
    if (state_.stay(gap.id, index(t))) {
      state_.commit();
      done = true;
      last = gap;
    } else {
      state_.rollback();
    }
  }
  spend();
  done = done && (state_.peak() <= budget || (state_.added_ns() < most_ns && repair(budget, most_ns, last))) &&
         state_.added_ns() < most_ns;
  done ? state_.commit() : state_.rollback();
  return done;
}

void Search::improve(int64_t budget, uint64_t seed, int64_t rounds) {
  std::mt19937_64 dice(seed);
  std::vector<Gap> open = gaps();
  for (int64_t failed = 0; failed < rounds && !open.empty() && !effort_.is_over(); ++failed) {
    if (!exchange(budget, state_.added_ns(), open, dice)) continue;
    note();
    failed = 0;
    open = gaps();
  }
}

/// @return whether it fits, for at most `most_ns`; else all is as before.
bool Search::ruin_and_descend(int64_t budget, int64_t most_ns, const std::vector<Gap>& gaps, std::mt19937_64& dice) {
  constexpr double kExponents[] = {0.0, 0.25, 0.5, 1.0, 2.0};
  const size_t count = 1 + dice() % std::min<size_t>(24, gaps.size());
  const size_t first = dice() % gaps.size();
  const double exponent = kExponents[dice() % std::size(kExponents)];
  state_.begin();
  for (size_t k = 0; k < count; ++k) {
    const Gap gap = gaps[(first + k) % gaps.size()];
    const int t = state_.find(gap.id, gap.place);
    if (t < 0 || !state_.can_stay(gap.id, index(t))) continue;
    state_.begin();
    state_.stay(gap.id, index(t)) ? state_.commit() : state_.rollback();
  }
  spend();
  if (descend(budget, {exponent, true})) refill(budget);
  const bool is_taken = state_.peak() <= budget && state_.added_ns() <= most_ns;
  is_taken ? state_.commit() : state_.rollback();
  return is_taken;
}

void Search::shake(int64_t budget, uint64_t seed, int64_t rounds) {
  std::mt19937_64 dice(seed);
  int64_t best_ns = state_.added_ns();
  auto best = state_.stays();
  std::vector<Gap> open = gaps();
  for (int64_t failed = 0; failed < rounds && !open.empty() && !effort_.is_over(); ++failed) {
    // a little worse will do, of the best: else it never gets far from where it began
    const int64_t most_ns = best_ns + best_ns * static_cast<int64_t>(dice() % 64) / 1024;
    if (!ruin_and_descend(budget, most_ns, open, dice)) continue;
    open = gaps();
    if (dice() % 2 == 0)
      std::stable_sort(open.begin(), open.end(), [](const Gap& a, const Gap& b) { return a.place < b.place; });
    if (state_.added_ns() >= best_ns) continue;
    failed = 0;
    best_ns = state_.added_ns();
    best = state_.stays();
  }
  state_.assign(best);
}

}  // namespace refrain::plan
