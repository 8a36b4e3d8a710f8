#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/best.h"
#include "plan/effort.h"
#include "plan/state.h"

namespace refrain::plan {

/// Solvers of other planners, each on its own: no refill, no local search. The result in `state` is the plan of least
/// added time that fits `budget`, or, if none does, that of lowest peak. @return whether it fits. @param visit  if not
/// null, called for each plan that is tried, also for those after the first that fits.

/// Checkpoints all of sqrt(n) blocks of forward.
bool solve_sqrt_n(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Checkpoints the first m blocks by module path, m as small as the budget allows. Without module paths: of sqrt(n)
/// equal blocks.
bool solve_per_block(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Checkpoints blocks, but saves the outputs of named operators. @param saved_ops  parts of their names; empty: matrix
/// products, convolutions, attention. Source: torch.utils.checkpoint, selective activation checkpointing.
bool solve_selective(State& state, int64_t budget, Effort& effort, const std::vector<std::string>& saved_ops,
                     const Visit& visit = nullptr);

/// Saves the fewest bytes, without and with the operators that torch never recomputes.
/// Source: torch/_functorch/partitioners.py, `min_cut_rematerialization_partition`.
bool solve_min_cut(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Chooses, of what the min cut saves, which to recompute for a limit on saved bytes; the limit is the largest that
/// fits the peak.
/// Source: torch/_functorch/partitioners.py and knapsack.py, `activation_memory_budget`.
bool solve_knapsack(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Drops at the peak the value with most bytes for its own operator's time until its next use; nothing is retained.
/// Source: XLA, hlo_rematerialization.cc.
bool solve_xla(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Solves min cuts with a price for each byte in each slot; prices rise where the profile exceeds the budget. If no cut
/// fits, greedy drops follow.
/// Source: Arora, Hazan, Kale, "The Multiplicative Weights Update Method", 2012, for the prices.
bool solve_priced_cut(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Solves a dynamic program over the blocks of forward: each is kept whole, kept without its cheap parts, or recomputed
/// from a checkpoint, once or, in nested segments, more often.
bool solve_chain(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr);

/// Whether torch's partitioner counts the operator as too costly to recompute.
bool is_compute_intensive(const std::string& name);

}  // namespace refrain::plan
