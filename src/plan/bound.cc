#include "plan/bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "plan/closure_cut.h"
#include "plan/must_be_there.h"
#include "plan/stage_program.h"
#include "plan/state.h"

namespace refrain::plan {
namespace {

/// Places where the baseline is over budget.
std::vector<OpId> full_places(const Problem& problem, int64_t budget, std::vector<int64_t>& bytes) {
  bytes = State(problem).profile().all(problem.fixed.size());
  std::vector<OpId> places;
  for (OpId place = 0; place <= problem.ends; ++place)
    if (bytes[static_cast<size_t>(2 * place + 1)] > budget) places.push_back(place);
  return places;
}

/// Finds, in each of `parts` rows of full places, the one with the most bytes that must be resident, or in use in the
/// baseline; and the place of the baseline's peak.
std::vector<OpId> fullest_of_parts(const Problem& problem, int64_t budget, size_t parts, bool by_plain) {
  std::vector<int64_t> bytes;
  const std::vector<OpId> full = full_places(problem, budget, bytes);
  const auto need = [&](OpId place) {
    return by_plain ? bytes[static_cast<size_t>(2 * place + 1)] : must_be_there(problem, place);
  };
  std::vector<OpId> places;
  parts = std::min(parts, full.size());
  for (size_t k = 0; k < parts; ++k) {
    const auto begin = full.begin() + static_cast<int64_t>(full.size() * k / parts);
    const auto end = full.begin() + static_cast<int64_t>(full.size() * (k + 1) / parts);
    auto best = begin;
    for (auto at = begin; at != end; ++at)
      if (need(*at) >= need(*best)) best = at;
    places.push_back(*best);
  }
  const auto fullest = std::max_element(full.begin(), full.end(), [&](OpId a, OpId b) {
    return bytes[static_cast<size_t>(2 * a + 1)] < bytes[static_cast<size_t>(2 * b + 1)];
  });
  if (fullest != full.end()) places.push_back(*fullest);
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  return places;
}

/// The bound at one place.
class PlaceBound {
 public:
  PlaceBound(const Problem& problem, OpId place, int64_t budget)
      : p_(problem), cut_(problem, place, true), free_(budget - must_be_there(problem, place)) {
    int64_t total = 1;
    for (const OpId op : cut_.runnable()) total += p_.op(op).ns;
    // the sum of all capacities must be far below 2^60
    scale_ = std::min<int64_t>(int64_t{1} << 24, std::max<int64_t>(1, (int64_t{1} << 48) / total));
    most_price_ = total * scale_;
    for (const OpId op : cut_.runnable()) cut_.set_run_cost(op, p_.op(op).ns * scale_);
  }

  /// Returns ns, rounded up as an integer optimum allows; negative: nothing proven. Infeasible: `is_infeasible()`.
  int64_t solve(Effort& effort) {
    if (free_ < 0) {
      is_infeasible_ = true;
      return 0;
    }
    // least cost as a function of the price is concave; go to where the lines of two sides meet
    Line low = line(0), high{};
    if (low.value >= MaxFlow::kInfinite) return 0;
    int64_t best = low.value;
    if (low.bytes <= free_) return to_ns(best);
    int64_t price = std::max<int64_t>(1, most_price_ / std::max<int64_t>(1, free_));
    high = line(price);
    if (high.value >= MaxFlow::kInfinite) return to_ns(best);
    best = std::max(best, high.value - price * free_);
    if (high.bytes > free_) return to_ns(best);
    for (int round = 0; round < 30 && !effort.is_over(); ++round) {
      const double between =
          static_cast<double>(high.value - high.price * high.bytes - low.value + low.price * low.bytes) /
          static_cast<double>(low.bytes - high.bytes);
      price = std::clamp(static_cast<int64_t>(std::llround(between)), low.price, high.price);
      if (price == low.price || price == high.price) break;
      const int64_t before = cut_.steps();
      const Line here = line(price);
      effort.spend((cut_.steps() - before) / 4);
      if (here.value >= MaxFlow::kInfinite) break;
      const int64_t value = here.value - price * free_;
      best = std::max(best, value);
      if (here.bytes == low.bytes || here.bytes == high.bytes) break;
      (here.bytes > free_ ? low : high) = here;
    }
    return to_ns(best);
  }

  bool is_infeasible() const { return is_infeasible_; }

 private:
  struct Line {
    int64_t price = 0, value = 0, bytes = 0;
  };

  int64_t to_ns(int64_t scaled) const { return scaled <= 0 ? 0 : (scaled + scale_ - 1) / scale_; }

  Line line(int64_t price) {
    for (const ValueId v : cut_.keepable()) cut_.set_keep_cost(v, cost(price, v));
    for (const ValueId v : cut_.dead()) {
      const graph::Op& op = p_.op(p_.item(v).producer);
      cut_.set_keep_cost(v, cost(price, v) + (op.outputs.size() == 1 ? op.ns * scale_ : 0));
    }
    Line line{price, cut_.solve(), 0};
    if (line.value >= MaxFlow::kInfinite) return line;
    for (const auto* values : {&cut_.keepable(), &cut_.dead()})
      for (const ValueId v : *values)
        if (cut_.is_kept(v)) line.bytes += p_.item(v).bytes;
    return line;
  }

  int64_t cost(int64_t price, ValueId v) const {
    const auto exact = static_cast<__int128>(price) * p_.item(v).bytes;
    return exact > (MaxFlow::kInfinite >> 8) ? MaxFlow::kInfinite >> 8 : static_cast<int64_t>(exact);
  }

  const Problem& p_;
  ClosureCut cut_;
  int64_t free_, scale_ = 1, most_price_ = 0;
  bool is_infeasible_ = false;
};

}  // namespace

int64_t floor_bytes(const Problem& problem) {
  int64_t most = *std::max_element(problem.fixed.begin(), problem.fixed.end());
  for (OpId place = 0; place <= problem.ends; ++place) most = std::max(most, must_be_there(problem, place));
  return most;
}

Bound cut_bound(const Problem& problem, int64_t budget, Effort& effort) {
  Bound bound;
  if (floor_bytes(problem) > budget) {
    bound.is_infeasible = true;
    bound.proof = "floor";
    return bound;
  }
  std::vector<int64_t> bytes;
  const std::vector<OpId> places = full_places(problem, budget, bytes);
  if (places.empty()) return bound;
  // the fullest first, then ever finer parts of the rest
  const auto fullest = *std::max_element(places.begin(), places.end(), [&](OpId a, OpId b) {
    return bytes[static_cast<size_t>(2 * a + 1)] < bytes[static_cast<size_t>(2 * b + 1)];
  });
  std::vector<OpId> order{fullest};
  for (size_t parts = 2; parts <= 16; parts *= 2)
    for (size_t k = 1; k < parts; k += 2) order.push_back(places[places.size() * k / parts]);
  for (const bool by_plain : {false, true})
    for (const OpId place : fullest_of_parts(problem, budget, 12, by_plain))
      if (std::find(order.begin(), order.end(), place) == order.end()) order.push_back(place);
  for (const OpId place : order) {
    if (effort.is_over()) break;
    PlaceBound at(problem, place, budget);
    const int64_t ns = at.solve(effort);
    if (ns <= bound.added_ns) continue;
    bound.added_ns = ns;
    bound.proof = "cut";
  }
  return bound;
}

Bound lp_bound(const Problem& problem, int64_t budget, double seconds) {
  Bound bound;
  if (floor_bytes(problem) > budget) return bound;
  std::vector<std::vector<OpId>> tries;
  const size_t parts = std::clamp<size_t>(12'000 / static_cast<size_t>(problem.ends + 1), 3, 16);
  for (const bool by_plain : {false, true}) tries.push_back(fullest_of_parts(problem, budget, parts, by_plain));
  if (tries.front().empty()) return bound;
  if (problem.ends <= 60) {
    tries.emplace_back();
    for (OpId place = 0; place <= problem.ends; ++place) tries.back().push_back(place);
  }
  const Effort effort(std::numeric_limits<int64_t>::max(), seconds);
  for (const std::vector<OpId>& boundaries : tries) {
    if (effort.seconds_left() <= 0.0) break;
    const auto result = StageProgram(problem, budget, boundaries, true).solve(effort.seconds_left(), true);
    bound.is_infeasible = result.status == LinearProgram::Status::kInfeasible;
    const bool is_better = result.status == LinearProgram::Status::kOptimal && result.bound_ns > bound.added_ns;
    if (is_better) bound.added_ns = result.bound_ns;
    if (is_better || bound.is_infeasible) bound.proof = "lp";
    if (bound.is_infeasible) break;
  }
  return bound;
}

Bound integer_bound(const Problem& problem, int64_t budget, double seconds, int64_t enough_ns) {
  Bound bound;
  if (floor_bytes(problem) > budget) return bound;
  const Effort effort(std::numeric_limits<int64_t>::max(), seconds);
  std::vector<OpId> before;
  for (const size_t parts : {2, 3, 4, 6, 8, 10, 12, 16})
    for (const bool by_plain : {true, false}) {
      const double left = effort.seconds_left();
      if (left < 0.05 * seconds || bound.added_ns >= enough_ns) return bound;
      const std::vector<OpId> boundaries = fullest_of_parts(problem, budget, parts, by_plain);
      if (boundaries.empty() || boundaries == before) continue;
      before = boundaries;
      const auto result = StageProgram(problem, budget, boundaries, true).solve(left, false);
      bound.is_infeasible = result.status == LinearProgram::Status::kInfeasible;
      if (bound.is_infeasible || result.bound_ns > bound.added_ns) {
        bound.added_ns = result.bound_ns;
        bound.proof = "integer";
      }
      if (result.status != LinearProgram::Status::kOptimal) return bound;
    }
  return bound;
}

}  // namespace refrain::plan
