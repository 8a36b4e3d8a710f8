#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "plan/effort.h"
#include "plan/frontier.h"
#include "plan/state.h"

namespace refrain::plan {

struct DescendOptions {
  /// Exponent of the bytes over budget, as the weight of a slot: 0 counts slots, 1 bytes.
  double exponent = 0.0;
  /// Keep recomputed values where the budget allows: those that a later place would recompute.
  bool retain = true;
  /// Where drops would each lift another slot over the budget, try anything that lowers the peak; costly.
  bool to_the_end = true;
};

/// Rounds without success after which `Search::improve` usually gains nothing more.
inline int64_t improve_rounds(const Problem& problem) { return 400 + static_cast<int64_t>(problem.ends) / 4; }

/// Changes a state step by step under a budget. Deterministic, but for the time limit of `effort`.
class Search {
 public:
  Search(State& state, Effort& effort) : state_(state), effort_(effort), counted_(state.steps()) {}

  /// Adds every state passed from now on to `frontier`, which must outlive this.
  void watch(Frontier* frontier, std::string name, int64_t spacing = 0) {
    frontier_ = frontier;
    spacing_ = spacing;
    name_ = std::move(name);
  }

  /// Drops until the peak is at most `budget`: always the value that adds least time for the bytes it frees where they
  /// are too many. A drop comes with what it makes worthwhile to retain. @return false: no drop helps any more, or the
  /// effort is over.
  ///
  /// Source of the greedy rule: Chvatal, "A greedy heuristic for the set-covering problem", 1979; Wolsey 1982 for
  /// covers with capacities.
  bool descend(int64_t budget, const DescendOptions& options = {});

  /// Uses free bytes: keeps what fits, values with most time for their bytes first. Never over `budget`.
  void refill(int64_t budget);

  /// Runs a local search: keeps one value and drops the cheapest ones for it; accepted if less time is added. The peak
  /// must be, and is, at most `budget`.
  /// @param rounds  without success before it ends.
  void improve(int64_t budget, uint64_t seed, int64_t rounds);

  /// Searches large neighbourhoods: keeps a row of dropped values, then descends under weights drawn at random; a
  /// little more time is accepted, and the best state is the result. The peak must be, and is, at most `budget`.
  /// @param rounds  without success before it ends. Cost of each: as `descend` and `refill`.
  ///
  /// Source: Shaw, "Using constraint programming and local search methods to solve vehicle routing problems", 1998.
  void shake(int64_t budget, uint64_t seed, int64_t rounds);

 private:
  struct Gap {
    ValueId id;
    OpId place;
  };
  struct Scored {
    double score;
    ValueId id;
    OpId place;
    double ns = 0.0;                             ///< that it added when last tried
    bool operator<(const Scored& other) const {  // for a heap with the least on top
      if (score != other.score) return score > other.score;
      return id != other.id ? id > other.id : place > other.place;
    }
  };

  bool drop_and_retain(ValueId id, size_t t, int64_t budget, bool retain);
  bool descend_by_heap(int64_t budget, const DescendOptions& options);
  bool descend_at_peak(int64_t budget, const DescendOptions& options);
  bool repair(int64_t budget, int64_t most_ns, Gap except);
  std::vector<Gap> gaps();
  bool exchange(int64_t budget, int64_t most_ns, const std::vector<Gap>& gaps, std::mt19937_64& dice);
  bool ruin_and_descend(int64_t budget, int64_t most_ns, const std::vector<Gap>& gaps, std::mt19937_64& dice);
  void weigh(int64_t budget, double exponent);
  double estimate(ValueId id, size_t t) const;
  double benefit(ValueId id, size_t t) const;
  void collect_covering(int32_t slot, std::vector<Scored>& found) const;
  void spend();
  void note();

  State& state_;
  Effort& effort_;
  Frontier* frontier_ = nullptr;  // that watches
  std::string name_;
  int64_t spacing_ = 0;
  int64_t counted_;              // steps of the state that `effort` knows of
  std::vector<double> weights_;  // sums up to a slot
};

}  // namespace refrain::plan
