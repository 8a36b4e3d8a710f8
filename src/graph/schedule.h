#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace refrain::graph {

/// An action of an executor besides the step's own operators.
struct Action {
  enum class Kind : uint8_t {
    kDrop,       ///< frees the bytes of value `id`, which is resident
    kRecompute,  ///< recomputes operator `id`; all it reads must be resident. Its outputs are resident from then on
    kRecomputeInPlace,  ///< the same, and the temporary that it overwrites is consumed: not copied first, and dropped
  };
  Kind kind = Kind::kDrop;
  int32_t id = 0;
  bool operator==(const Action&) const = default;
};

/// A whole step by a plan. At place i, right before operator i, its actions run in order; the last place's after the
/// last operator.
///
/// Rules of execution, for the simulator and for the executor on the tape alike:
/// - A value is *resident* from the end of its producer to its death in the baseline, unless dropped. Recomputed while
///   alive it is resident in its own storage, for all readers; after its death it is a temporary that only
///   recomputations read, until dropped.
/// - Only evictable values that are alive, and temporaries, can be dropped. Sources are resident between birth and
///   death, never else.
/// - An operator of the step needs its inputs resident, and what it overwrites. At the end of the step all evictable
///   values that outlive it must be resident.
/// - Recomputing an operator takes `workspace` and its outputs as the first run did. Outputs that are resident already
///   are made a second time and freed at its end. One that overwrites its input copies that first (its bytes more, from
///   before the start), or consumes it; one that overwrites unread takes new bytes.
struct Schedule {
  std::vector<std::vector<Action>> places;  ///< `ops.size() + 1`
  bool operator==(const Schedule&) const = default;
};

/// The schedule without actions.
Schedule empty_schedule(const Graph& graph);

/// What running a schedule costs.
struct Simulation {
  std::string error;  ///< why it cannot run (place, operator, value); the rest counts only if empty
  int64_t peak = 0;   ///< bytes in use
  OpId peak_place = 0;
  bool peak_in_recompute = false;  ///< while an action ran, else the operator itself or the gap before it
  int64_t added_ns = 0;            ///< of recomputed operators
  int64_t recomputed_ops = 0;
  std::vector<int64_t> in_use;  ///< at the start of each operator, after its place's actions, and at the end
  std::vector<int64_t> peaks;   ///< from the end of the operator before to its own end; for each and the end
};

/// Simulates `schedule`. Cost: linear in operators, values and actions. `graph` must have no defect.
Simulation simulate(const Graph& graph, const Schedule& schedule);
/// Peak of the baseline: nothing is dropped. Cost: as `simulate`.
inline int64_t plain_peak(const Graph& graph) { return simulate(graph, empty_schedule(graph)).peak; }

}  // namespace refrain::graph
