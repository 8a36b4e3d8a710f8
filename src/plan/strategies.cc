#include "plan/strategies.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "plan/best.h"
#include "plan/blocks.h"
#include "plan/closure_cut.h"
#include "plan/search.h"

namespace refrain::plan {
namespace {

size_t index(int32_t id) { return static_cast<size_t>(id); }

}  // namespace

bool is_compute_intensive(const std::string& name) {
  constexpr const char* kNames[] = {"mm", "matmul", "linear", "conv", "attention", "einsum", "rnn", "lstm", "gru"};
  return std::any_of(std::begin(kNames), std::end(kNames),
                     [&](const char* part) { return name.find(part) != std::string::npos; });
}

namespace {

std::vector<Block> sqrt_n_blocks(const Problem& problem) {
  return equal_blocks(problem, static_cast<int32_t>(std::ceil(std::sqrt(static_cast<double>(turn(problem))))));
}

/// Cuts by module path, or else into sqrt(n) blocks.
std::vector<Block> model_blocks(const Problem& problem) {
  auto blocks = blocks_by_scope(problem);
  return blocks.empty() ? sqrt_n_blocks(problem) : blocks;
}

}  // namespace

bool solve_sqrt_n(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  Best best(state, budget, effort, visit);
  best.attempt(checkpoint_blocks(state.problem(), sqrt_n_blocks(state.problem())), false);
  return best.finish();
}

bool solve_per_block(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  Best best(state, budget, effort, visit);
  const std::vector<Block> blocks = model_blocks(state.problem());
  best.levels(static_cast<int64_t>(blocks.size()), [&](int64_t m) {
    return best.attempt(checkpoint_blocks(state.problem(), {blocks.begin(), blocks.begin() + m}), false);
  });
  return best.finish();
}

bool solve_selective(State& state, int64_t budget, Effort& effort, const std::vector<std::string>& saved_ops,
                     const Visit& visit) {
  Best best(state, budget, effort, visit);
  const Problem& problem = state.problem();
  const auto is_named = [&](const std::string& name) {
    if (saved_ops.empty()) return is_compute_intensive(name);
    return std::any_of(saved_ops.begin(), saved_ops.end(),
                       [&](const std::string& part) { return name.find(part) != std::string::npos; });
  };
  // what was written in place of a saved output is saved for it
  const auto is_saved = [&](ValueId v) {
    while (v != graph::kNone && problem.item(v).producer != graph::kNone) {
      if (is_named(problem.op(problem.item(v).producer).name)) return true;
      v = problem.graph->values[index(v)].overwrites;
    }
    return false;
  };
  best.attempt(checkpoint_blocks(problem, model_blocks(problem), is_saved), false);
  return best.finish();
}

namespace {

/// Finds the min cut for given costs of saving a byte; operators cost their time, those `banned` are never recomputed.
Stays cut_for(const Problem& problem, ClosureCut& cut, const std::function<int64_t(ValueId)>& keep_cost,
              const std::function<int64_t(OpId)>& run_cost, Effort& effort) {
  for (const ValueId v : cut.keepable()) cut.set_keep_cost(v, keep_cost(v));
  for (const OpId op : cut.runnable()) cut.set_run_cost(op, run_cost(op));
  const int64_t before = cut.steps();
  const bool is_possible = cut.solve() < MaxFlow::kInfinite;
  effort.spend((cut.steps() - before) / 4);
  return save_only(problem, [&](ValueId v) { return !is_possible || cut.is_kept(v); });
}

constexpr int64_t kByteCost = int64_t{1} << 10;  // so that time breaks ties

Stays fewest_bytes(const Problem& problem, ClosureCut& cut, bool bans, Effort& effort) {
  double total = 1.0;
  for (const OpId op : cut.runnable()) total += static_cast<double>(problem.op(op).ns);
  return cut_for(
      problem, cut, [&](ValueId v) { return problem.item(v).bytes * kByteCost; },
      [&](OpId op) {
        if (bans && is_compute_intensive(problem.op(op).name)) return MaxFlow::kInfinite;
        return static_cast<int64_t>(static_cast<double>(problem.op(op).ns) / total * static_cast<double>(kByteCost));
      },
      effort);
}

}  // namespace

bool solve_min_cut(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  Best best(state, budget, effort, visit);
  ClosureCut cut(state.problem(), turn(state.problem()));
  for (const bool bans : {true, false})
    if (best.attempt(fewest_bytes(state.problem(), cut, bans, effort), true) && !visit) break;
  return best.finish();
}

namespace {

struct Saved {
  ValueId id;
  int64_t bytes, ns;
};

/// Chooses which `items` to save for most time within `limit` bytes, in 1/400 of the sum of bytes.
std::vector<char> knapsack(const std::vector<Saved>& items, int64_t limit) {
  constexpr int64_t kParts = 400;
  int64_t sum = 0;
  for (const Saved& item : items) sum += item.bytes;
  const int64_t unit = std::max<int64_t>(1, (sum + kParts - 1) / kParts);
  const auto room = static_cast<size_t>(std::min(limit, sum) / unit);
  std::vector<double> value(room + 1, 0.0);
  std::vector<std::vector<char>> taken(items.size(), std::vector<char>(room + 1));
  for (size_t k = 0; k < items.size(); ++k) {
    const auto weight = static_cast<size_t>((items[k].bytes + unit - 1) / unit);
    for (size_t r = room; r + 1 > weight && r <= room; --r) {
      const double with = value[r - weight] + static_cast<double>(items[k].ns);
      if (with <= value[r]) continue;
      value[r] = with;
      taken[k][r] = true;
      if (r == 0) break;
    }
  }
  std::vector<char> chosen(items.size());
  size_t r = room;
  for (size_t k = items.size(); k-- > 0;) {
    if (!taken[k][r]) continue;
    chosen[k] = true;
    r -= static_cast<size_t>((items[k].bytes + unit - 1) / unit);
  }
  return chosen;
}

}  // namespace

bool solve_knapsack(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  Best best(state, budget, effort, visit);
  const Problem& problem = state.problem();
  const OpId at = turn(problem);
  ClosureCut cut(problem, at);
  const Stays saved_by_cut = fewest_bytes(problem, cut, true, effort);
  if (best.attempt(saved_by_cut, true) && !visit) return best.finish();
  std::vector<char> is_base(problem.items.size());
  std::vector<Saved> items;
  int64_t sum = 0;
  for (const ValueId v : cut.keepable()) {
    if (!cut.is_kept(v)) continue;
    const OpId producer = problem.item(v).producer;
    if (!problem.op(producer).replayable) {
      is_base[index(v)] = true;
      continue;
    }
    items.push_back({v, problem.item(v).bytes, problem.op(producer).ns});
    sum += problem.item(v).bytes;
  }
  constexpr int64_t kLevels = 64;
  best.levels(kLevels, [&](int64_t level) {
    if (best.is_over()) return false;
    const auto chosen = knapsack(items, sum / kLevels * (kLevels - level));
    std::vector<char> is_saved = is_base;
    for (size_t k = 0; k < items.size(); ++k) is_saved[index(items[k].id)] = chosen[k];
    return best.attempt(save_only(problem, [&](ValueId v) { return is_saved[index(v)] != 0; }), true);
  });
  return best.finish();
}

bool solve_xla(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  const Problem& problem = state.problem();
  state.assign(keep_all(problem));
  std::vector<OpId> failed(problem.items.size(), graph::kNone);  // after which touch
  while (state.peak() > budget && !effort.is_over()) {
    const int32_t slot = state.profile().most_at();
    ValueId best = graph::kNone;
    size_t best_touch = 0;
    double best_score = 0.0;
    for (size_t v = 0; v < problem.items.size(); ++v) {
      const auto id = static_cast<ValueId>(v);
      const auto& touches = state.touches(id);
      for (size_t t = 0; t + 1 < touches.size(); ++t) {
        const State::Range range = state.range(id, t);
        if (range.last < slot) continue;
        if (range.first > slot) break;
        if (!state.can_drop(id, t) || failed[v] == touches[t].place) break;
        const double score = static_cast<double>(problem.item(id).bytes) /
                             (static_cast<double>(problem.op(problem.item(id).producer).ns) + 1.0);
        if (score > best_score) {
          best_score = score;
          best = id;
          best_touch = t;
        }
        break;
      }
    }
    const int64_t before = state.steps();
    effort.spend(static_cast<int64_t>(problem.items.size()) / 4);
    if (best == graph::kNone) break;
    const int64_t peak = state.peak();
    const OpId place = state.touches(best)[best_touch].place;
    state.begin();
    if (state.drop(best, best_touch) && state.peak() <= peak) {
      state.commit();
      if (visit) visit();
    } else {
      state.rollback();
      failed[index(best)] = place;
    }
    effort.spend(state.steps() - before);
  }
  return state.peak() <= budget;
}

bool solve_priced_cut(State& state, int64_t budget, Effort& effort, const Visit& visit) {
  Best best(state, budget, effort, visit);
  const Problem& problem = state.problem();
  const OpId at = turn(problem);
  ClosureCut cut(problem, at);
  double total = 1.0;
  for (const OpId op : cut.runnable()) total += static_cast<double>(problem.op(op).ns);
  const double scale = std::ldexp(1.0, 44) / total;
  state.assign(keep_all(problem));
  auto profile = state.profile().all(problem.fixed.size());
  std::vector<double> price(profile.size()), sums(profile.size() + 1);
  for (size_t s = 0; s < price.size(); ++s) price[s] = profile[s] > budget ? 1.0 : 0.0;
  const auto stays_at = [&](double level) {
    for (size_t s = 0; s < price.size(); ++s) sums[s + 1] = sums[s] + price[s];
    const double unit = level * total / (sums.back() + 1e-12) / static_cast<double>(budget + 1);
    return cut_for(
        problem, cut,
        [&](ValueId v) {
          // it is resident in any case until its last read of forward and from its first of backward
          const auto reads = problem.reads[v];
          const auto later = std::lower_bound(reads.begin(), reads.end(), at);
          const OpId from = later == reads.begin() ? problem.item(v).producer : *(later - 1);
          const OpId to = later == reads.end() ? problem.item(v).death - 1 : *later;
          const double sum = sums[2 * index(to) + 1] - sums[std::min(2 * index(from) + 3, 2 * index(to) + 1)];
          return static_cast<int64_t>(
              std::min(sum * unit * static_cast<double>(problem.item(v).bytes) * scale, std::ldexp(1.0, 52)));
        },
        [&](OpId op) { return static_cast<int64_t>(static_cast<double>(problem.op(op).ns) * scale); }, effort);
  };
  for (int round = 0; round < 4 && !effort.is_over(); ++round) {
    double low = 0.0, high = 4.0;
    while (high < 1e7 && !effort.is_over() && !best.attempt(stays_at(high), true)) low = high, high *= 16.0;
    for (int i = 0; i < 8 && !effort.is_over(); ++i) {
      const double middle = low > 0.0 ? std::sqrt(low * high) : high / 8.0;
      (best.attempt(stays_at(middle), true) ? high : low) = middle;
    }
    // prices rise where it is still too much just below the level that fits
    state.assign(stays_at(low > 0.0 ? low : high / 2.0), true);
    profile = state.profile().all(problem.fixed.size());
    for (size_t s = 0; s < price.size(); ++s) {
      const double over = static_cast<double>(profile[s] - budget) / static_cast<double>(budget + 1);
      if (over > 0.0) price[s] = std::max(price[s], 0.05) * (1.0 + std::min(4.0, 8.0 * over));
    }
  }
  if (best.finish()) return true;
  // recomputed values are kept too long
  Search search(state, effort);
  return search.descend(budget);
}

}  // namespace refrain::plan
