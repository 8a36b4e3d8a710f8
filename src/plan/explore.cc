#include "plan/explore.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "plan/strategies.h"

namespace refrain::plan {
namespace {

constexpr OpId kSmallOps = 2000;   // up to which there is time for local search at every rung
constexpr OpId kHugeOps = 20'000;  // from which there is none for further starts
constexpr int64_t kRungs = 64;     // of small graphs
constexpr int64_t kFewRungs = 8;   // of large ones
constexpr int64_t kDense = 4;      // times as many, for what lies between

}  // namespace

Exploration::Exploration(State& state, Frontier& frontier, const Settings& settings, Measure measure)
    : state_(state),
      frontier_(frontier),
      settings_(settings),
      measure_(std::move(measure)),
      plain_(frontier.points().back().peak) {}

bool Exploration::is_small() const { return state_.problem().ends <= kSmallOps; }
bool Exploration::is_huge() const { return state_.problem().ends > kHugeOps; }

void Exploration::measure(const std::string& name, Effort& effort, double part,
                          const std::function<void(Effort&)>& work) {
  if (effort.is_over()) return;
  measure_(name, [&] {
    Effort own(static_cast<int64_t>(static_cast<double>(effort.left()) * part), effort.seconds_left());
    work(own);
    effort.spend(own.spent());
  });
}

/// @return false: it cannot run; then all is kept.
bool Exploration::load(const Stays& stays, Effort& effort) {
  const int64_t before = state_.steps();
  const bool runs = state_.assign(stays);
  effort.spend(state_.steps() - before + state_.problem().ends);
  return runs;
}

void Exploration::load(const Point& point, Effort& effort) {
  load(point.schedule ? State::stays_of(state_.problem(), *point.schedule) : point.stays.unpack(), effort);
}

/// Starts from the baseline. @return whether it fits.
bool Exploration::descend_afresh(int64_t budget, double exponent, Effort& effort, const std::string& name) {
  state_.assign(keep_all(state_.problem()));
  Search search(state_, effort);
  const bool fits = search.descend(budget, {exponent, true});
  frontier_.add(state_, name);
  if (!fits) return false;
  search.refill(budget);
  frontier_.add(state_, name);
  return true;
}

// ---- the lowest peak

void Exploration::descend_to_least(Effort& effort) {
  measure("least_peak", effort, 1.0, [&](Effort& part) {
    if (is_small()) return bisect_least(settings_.floor, 24, part);
    const int64_t count = std::clamp<int64_t>(80'000 / state_.problem().ends, 8, 16);
    int64_t low = settings_.floor;
    for (int64_t k = count; k-- > 0 && low == settings_.floor && !part.is_over();) {
      Effort own(part.left() / 2, part.seconds_left());
      const int64_t budget = settings_.floor + (plain_ - settings_.floor) * k / count;
      if (!descend_afresh(budget, 0.0, own, "greedy")) low = budget;
      part.spend(own.spent());
    }
    bisect_least(low, 8, part);
  });
}

/// @param low  what has not been reached.
void Exploration::bisect_least(int64_t low, int rounds, Effort& effort) {
  load(frontier_.points().front(), effort);
  int64_t high = state_.peak();
  Stays stays = state_.stays();
  for (int round = 0; round < rounds && high > low && !effort.is_over(); ++round) {
    const int64_t target = round < rounds / 2 ? low + (high - low) * 3 / 4 : low + (high - low) / 2;
    Effort part(effort.left() / 4, effort.seconds_left());
    const bool fits = Search(state_, part).descend(target);
    effort.spend(part.spent());
    frontier_.add(state_, "least_peak");
    if (fits) {
      high = state_.peak();
      stays = state_.stays();
    } else {
      high = std::min(high, state_.peak());
      low = target;
      state_.assign(stays);
    }
  }
}

// ---- all of it

void Exploration::run(Effort& effort) {
  if (!is_small()) {
    try_solvers(effort);
    measure("widest gaps", effort, 1.0, [&](Effort& part) { fill_widest(part); });
    return;
  }
  rungs_ = make_rungs(kRungs, 0.0);
  if (rungs_.empty()) return;
  for (const double exponent : {0.0, 1.0, 0.25, 0.5, 2.0}) {
    const std::string name = exponent == 0.0 ? "greedy" : fmt::format("greedy^{:g}", exponent);
    measure(name, effort, 0.125, [&](Effort& part) {
      if (exponent == 0.0 || exponent == 1.0) descend_rungs(1, exponent, part, name);
      for (size_t k = rungs_.size(); k > 0 && !part.is_over(); k -= std::min<size_t>(k, 4))
        descend_afresh(rungs_[k - 1], exponent, part, name);
    });
  }
  try_solvers(effort);
  rungs_ = make_rungs(kRungs, 0.0);
  if (rungs_.empty()) return;
  measure("sweeps", effort, 0.3, [&](Effort& part) {
    sweep_down(part);
    sweep_up(part);
  });
  measure("local_search", effort, 0.6, [&](Effort& part) { search_where_it_pays(part); });
  rungs_ = make_rungs(kDense * kRungs, 0.5);
  measure("between", effort, 1.0, [&](Effort& part) { sweep_down(part); });
}

// ---- small graphs

/// Budgets from the lowest peak on, at even distances along the frontier, on which time counts for more than bytes:
/// more of them where a byte costs much. @param shift  of all but the first, in distances.
std::vector<int64_t> Exploration::make_rungs(int64_t count, double shift) const {
  constexpr double kTime = 0.7;
  const auto& points = frontier_.points();
  const auto bytes = static_cast<double>(std::max<int64_t>(1, plain_ - points.front().peak));
  const auto ns = static_cast<double>(std::max<int64_t>(1, points.front().added_ns));
  const double distance = 1.0 / static_cast<double>(count);
  std::vector<int64_t> rungs{points.front().peak};
  double at = 0.0, next = shift * distance;
  for (size_t k = 0; k + 1 < points.size(); ++k) {
    const auto width = static_cast<double>(points[k + 1].peak - points[k].peak);
    const auto height = static_cast<double>(points[k].added_ns - points[k + 1].added_ns);
    const double length = (1.0 - kTime) * width / bytes + kTime * height / ns;
    for (; next <= at + length; next += distance)
      rungs.push_back(points[k].peak + static_cast<int64_t>(width * (next - at) / length));
    at += length;
  }
  std::erase_if(rungs, [&](int64_t rung) { return rung >= plain_; });
  rungs.erase(std::unique(rungs.begin(), rungs.end()), rungs.end());
  return rungs;
}

/// Goes from one rung to the next, from the present state, and fills the free bytes at each.
void Exploration::descend_rungs(size_t stride, double exponent, Effort& effort, const std::string& name) {
  Search search(state_, effort);
  search.watch(&frontier_, name);
  for (size_t k = rungs_.size(); k > 0 && !effort.is_over(); k -= std::min(k, stride)) {
    if (state_.peak() <= rungs_[k - 1]) continue;
    if (!search.descend(rungs_[k - 1], {exponent, true})) return;
    search.refill(rungs_[k - 1]);
    frontier_.add(state_, name);
  }
}

/// Local search at each rung, from the highest on, with what was found above handed on.
void Exploration::sweep_down(Effort& effort) {
  for (size_t k = rungs_.size(); k-- > 0 && !effort.is_over();) {
    Effort part(effort.left() / static_cast<int64_t>(k + 1), effort.seconds_left());
    hand_down(k + 1, part);
    search_at(rungs_[k], part);
    effort.spend(part.spent());
  }
}

void Exploration::sweep_up(Effort& effort) {
  for (size_t k = 0; k < rungs_.size() && !effort.is_over(); ++k) {
    Effort part(effort.left() / static_cast<int64_t>(rungs_.size() - k), effort.seconds_left());
    search_at(rungs_[k], part);
    effort.spend(part.spent());
  }
}

/// Descends from what is known at a rung to the one below. @param rung  may be beyond the last: the baseline's peak.
void Exploration::hand_down(size_t rung, Effort& effort) {
  if (rung == 0) return;
  const Point* known = frontier_.best(rung < rungs_.size() ? rungs_[rung] : plain_);
  if (known != nullptr && known->peak > rungs_[rung - 1]) descend_from(Point(*known), rungs_[rung - 1], effort);
}

void Exploration::descend_from(const Point& point, int64_t budget, Effort& effort) {
  load(point, effort);
  Search search(state_, effort);
  if (is_small()) search.watch(&frontier_, "handed_down");
  if (search.descend(budget)) search.refill(budget);
  frontier_.add(state_, "handed_down");
}

/// Visits rungs next to those where a visit gained much, and hands its result to them. Ends when nothing gains any
/// more.
void Exploration::search_where_it_pays(Effort& effort) {
  if (rungs_.empty()) return;
  const int64_t slice = effort.left() / static_cast<int64_t>(2 * rungs_.size());
  std::vector<double> promise(rungs_.size(), 1e300);
  size_t failed = 0;
  while (failed < 3 * rungs_.size() && !effort.is_over()) {
    const auto rung = static_cast<size_t>(std::max_element(promise.begin(), promise.end()) - promise.begin());
    Effort part(std::min(slice, effort.left()), effort.seconds_left());
    const auto gain = static_cast<double>(search_at(rungs_[rung], part));
    effort.spend(part.spent() + 1);
    if (gain <= 0.0) {
      ++failed;
      promise[rung] = promise[rung] > 1e200 ? 0.0 : promise[rung] * 0.5 - 1e-3;
      continue;
    }
    failed = 0;
    promise[rung] = gain;
    hand_down(rung, effort);
    if (rung > 0) promise[rung - 1] = std::max(promise[rung - 1], gain / 2);
    if (rung + 1 < rungs_.size()) promise[rung + 1] = std::max(promise[rung + 1], gain / 2);
  }
}

/// Improves the best known plan: local search, then large neighbourhoods. @return time gained.
int64_t Exploration::search_at(int64_t budget, Effort& effort) {
  const Point* start = frontier_.best(budget);
  if (start == nullptr || start->added_ns == 0) return 0;
  const int64_t before = start->added_ns;
  load(*start, effort);
  if (state_.peak() > budget) return 0;
  ++visits_;
  Effort part(effort.left() / 3, effort.seconds_left());
  Search local(state_, part);
  local.watch(&frontier_, "local_search");
  local.refill(budget);
  local.improve(budget, settings_.seed + visits_, improve_rounds(state_.problem()));
  frontier_.add(state_, "local_search");
  effort.spend(part.spent());
  constexpr int64_t kRounds = 2000;  // without success
  Search large(state_, effort);
  large.watch(&frontier_, "neighbourhoods");
  large.shake(budget, settings_.seed + visits_, kRounds);
  frontier_.add(state_, "neighbourhoods");
  return before - frontier_.best(budget)->added_ns;
}

// ---- large graphs

/// Works where bytes times time between two neighbouring plans is most: stays from the lower one on; if that has been
/// tried, drops from the upper one to a budget between them, then from the baseline.
void Exploration::fill_widest(Effort& effort) {
  std::set<int64_t> refilled;       // peaks
  std::map<int64_t, int> descents;  // by budget
  const double step_ns = static_cast<double>(graph::operators_ns(*state_.problem().graph)) + 1.0;
  // what adds as much as the step takes is of little use to anyone
  const auto weight = [&](int64_t ns) { return static_cast<double>(ns) / (static_cast<double>(ns) + step_ns / 4); };
  while (!effort.is_over()) {
    const auto& points = frontier_.points();
    const Point* widest = nullptr;
    int64_t budget = 0;
    double most = 0.0;
    for (size_t k = 0; k + 1 < points.size(); ++k) {
      const int64_t middle = points[k].peak + (points[k + 1].peak - points[k].peak) / 2;
      const double area = static_cast<double>(points[k + 1].peak - points[k].peak) *
                          (weight(points[k].added_ns) - weight(points[k + 1].added_ns));
      const auto known = descents.find(middle);
      if (area <= most || (known != descents.end() && known->second == 2)) continue;
      most = area;
      widest = &points[k];
      budget = middle;
    }
    if (widest == nullptr) return;
    Effort part(effort.left() / 8 + 1, effort.seconds_left());
    if (refilled.insert(widest->peak).second)
      refill_from(Point(*widest), part);
    else if (++descents[budget] == 1)
      descend_from(Point(*(widest + 1)), budget, part);
    else
      descend_afresh(budget, 0.0, part, "greedy");
    effort.spend(part.spent() + 1);
  }
}

/// Goes from a plan up to the next by one stay after the other: these plans are usually about as good as the next.
void Exploration::refill_from(const Point& point, Effort& effort) {
  constexpr int64_t kBetween = 8;  // plans
  const auto& points = frontier_.points();
  const auto next = std::find_if(points.begin(), points.end(), [&](const Point& p) { return p.peak > point.peak; });
  if (next == points.end() || effort.is_over()) return;
  const int64_t budget = next->peak - 1;
  Search search(state_, effort);
  search.watch(&frontier_, "refill", (budget - point.peak) / kBetween);
  load(point, effort);
  search.refill(budget);
  frontier_.add(state_, "refill");
}

// ---- plans of others

/// Plans that do not fit are start points all the same.
void Exploration::try_solver(const std::string& name, Effort& effort, const Solve& solve) {
  measure(name, effort, is_huge() ? 1.0 / 48 : 1.0 / 16, [&](Effort& part) {
    solve(part, [&] { frontier_.add(state_, name, spacing()); });
    if (is_small()) descend_rungs(8, 0.0, part, name);
  });
}

int64_t Exploration::spacing() const { return is_small() ? 0 : (plain_ - settings_.floor) / 64; }

/// Plans of blocks lead lower than greedy drops from the baseline; those of other solvers seldom do.
void Exploration::descend_from_blocks(Effort& effort, const std::string& name) {
  if (is_small() || is_huge()) return;
  Search search(state_, effort);
  search.watch(&frontier_, name, spacing());
  search.descend(settings_.floor);
  frontier_.add(state_, name);
}

/// Tries the first few of equal blocks: what one forward computed together and backward reads last is recomputed
/// together, where each value alone would have the same operators recomputed.
void Exploration::try_first_blocks(Effort& effort) {
  const std::string name = "first_blocks";
  rungs_ = make_rungs(is_small() ? kRungs : kFewRungs, 0.0);
  measure(name, effort, is_small() ? 0.125 : 0.25, [&](Effort& part) {
    for (const int32_t parts : {12, 8, 6, 4}) {
      const auto blocks = equal_blocks(state_.problem(), parts);
      const size_t third = blocks.size() / 3;  // mostly the best
      for (size_t m = is_small() ? 1 : third; m <= (is_small() ? blocks.size() / 2 : third) && !part.is_over(); ++m) {
        const auto first = blocks.begin();
        if (!load(checkpoint_blocks(state_.problem(), {first, first + static_cast<ptrdiff_t>(m)}), part)) continue;
        frontier_.add(state_, name);
        descend_rungs(rungs_.size() / 8 + 1, 0.0, part, name);
      }
    }
  });
}

void Exploration::try_solvers(Effort& effort) {
  try_solver("per_block", effort, [&](Effort& part, const Visit& visit) {
    solve_per_block(state_, 0, part, visit);
    descend_from_blocks(part, "per_block");
  });
  try_solver("sqrt_n", effort, [&](Effort& part, const Visit& visit) {
    solve_sqrt_n(state_, 0, part, visit);
    descend_from_blocks(part, "sqrt_n");
  });
  try_solver("selective", effort,
             [&](Effort& part, const Visit& visit) { solve_selective(state_, 0, part, settings_.saved_ops, visit); });
  try_solver("min_cut", effort, [&](Effort& part, const Visit& visit) { solve_min_cut(state_, 0, part, visit); });
  try_solver("knapsack", effort, [&](Effort& part, const Visit& visit) { solve_knapsack(state_, 0, part, visit); });
  try_solver("chain", effort, [&](Effort& part, const Visit& visit) { solve_chain(state_, plain_, part, visit); });
  try_solver("xla", effort, [&](Effort& part, const Visit& visit) { solve_xla(state_, 0, part, visit); });
  const int64_t least = frontier_.points().front().peak;
  for (const int64_t part_of_range : {2, 8, 32, 1024}) {
    if (is_huge() && part_of_range > 2) break;
    const int64_t budget = least + (plain_ - least) / part_of_range;
    try_solver("priced_cut", effort, [&](Effort& part, const Visit& visit) {
      if (solve_priced_cut(state_, budget, part, visit)) visit();
    });
  }
  if (!is_huge()) try_first_blocks(effort);
  for (const graph::Schedule& start : settings_.starts)
    try_solver("start", effort, [&](Effort&, const Visit& visit) {
      if (state_.assign(State::stays_of(state_.problem(), start))) visit();
    });
}

}  // namespace refrain::plan
