#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "plan/best.h"
#include "plan/effort.h"
#include "plan/frontier.h"
#include "plan/search.h"

namespace refrain::plan {

/// Searches for the whole trade-off between peak and added time of one step. It depends on no requested budget, so that
/// the added time that budgets read from the frontier falls as they rise.
///
/// It works at *rungs*, budgets of its own: greedy drops at each, the plans of other solvers, then local search, most
/// where it pays most. Plans between two rungs are found on the way from one to the other: each goes into the frontier.
class Exploration {
 public:
  struct Settings {
    uint64_t seed = 0;                    ///< of local search
    std::vector<std::string> saved_ops;   ///< for the selective solver
    std::vector<graph::Schedule> starts;  ///< that run
    int64_t floor = 0;                    ///< no schedule has a lower peak
  };
  /// Measures a part of the work, by name.
  using Measure = std::function<void(const std::string&, const std::function<void()>&)>;

  /// `state` and `frontier` must outlive this. The frontier has the baseline.
  Exploration(State& state, Frontier& frontier, const Settings& settings, Measure measure);

  /// Drops greedily down to the lowest peak that drops reach.
  void descend_to_least(Effort& effort);
  /// Runs the rest of the search, after `descend_to_least`.
  void run(Effort& effort);

 private:
  using Solve = std::function<void(Effort&, const Visit&)>;

  bool is_small() const;
  bool is_huge() const;
  /// Runs `work` with a part of the effort that is left.
  void measure(const std::string& name, Effort& effort, double part, const std::function<void(Effort&)>& work);
  bool load(const Stays& stays, Effort& effort);
  void load(const Point& point, Effort& effort);
  bool descend_afresh(int64_t budget, double exponent, Effort& effort, const std::string& name);
  void bisect_least(int64_t low, int rounds, Effort& effort);

  std::vector<int64_t> make_rungs(int64_t count, double shift) const;
  void descend_rungs(size_t stride, double exponent, Effort& effort, const std::string& name);
  void sweep_down(Effort& effort);
  void sweep_up(Effort& effort);
  void search_where_it_pays(Effort& effort);
  void descend_from(const Point& point, int64_t budget, Effort& effort);
  void hand_down(size_t rung, Effort& effort);
  int64_t search_at(int64_t budget, Effort& effort);

  void fill_widest(Effort& effort);
  void refill_from(const Point& point, Effort& effort);

  void try_solvers(Effort& effort);
  void try_first_blocks(Effort& effort);
  void try_solver(const std::string& name, Effort& effort, const Solve& solve);
  /// Least distance between the peaks of plans that are noted on the way.
  int64_t spacing() const;
  void descend_from_blocks(Effort& effort, const std::string& name);

  State& state_;
  Frontier& frontier_;
  const Settings& settings_;
  Measure measure_;
  int64_t plain_;
  std::vector<int64_t> rungs_;  // rising
  uint64_t visits_ = 0;
};

}  // namespace refrain::plan
