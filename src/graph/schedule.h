#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace refrain::graph {

/// What an executor does besides the step's own operators.
struct Action {
  enum class Kind : uint8_t {
    kDrop,       ///< frees the bytes of value `id`, which is there
    kRecompute,  ///< runs operator `id` again; all it reads must be there. What it makes and was not there is there from then on
    kRecomputeInPlace,  ///< the same, and the temporary that it overwrites is consumed: not copied first, and gone afterwards
  };
  Kind kind = Kind::kDrop;
  int32_t id = 0;
  bool operator==(const Action&) const = default;
};

/// A whole step by a plan. At place i, right before operator i, its actions run in order; those of the last place after the last operator.
///
/// Rules of execution, for the simulator and for the executor on the tape alike:
/// - A value is *there* from the end of its producer to its death in the plain run, unless dropped. Recomputed while it is alive it is back in its own
///   storage, for all; after its death it is a temporary that only recomputations read, until dropped.
/// - Only evictable values that are alive, and temporaries, can be dropped. Sources are there between birth and death, never else.
/// - An operator of the step needs all its inputs there, and what it overwrites. At the end of the step all evictable values that outlive it must be there.
/// - Recomputing an operator takes `workspace` and its outputs as the first run did. Outputs that are there already are made again and freed
///   at its end. One that overwrites its input copies that first (its bytes more, from before the start), or consumes it; one that overwrites unread takes new bytes.
struct Schedule {
  std::vector<std::vector<Action>> places;  ///< `ops.size() + 1`
  bool operator==(const Schedule&) const = default;
};

/// Keeps all.
Schedule empty_schedule(const Graph& graph);

/// What running `schedule` takes.
struct Simulation {
  std::string error;           ///< why it cannot run (place, operator, value), or empty; then the rest means nothing
  int64_t peak = 0;            ///< most bytes in use
  OpId peak_place = 0;
  bool peak_in_recompute = false;  ///< while an action ran, else the operator itself or the gap before it
  int64_t added_ns = 0;        ///< of operators that ran again
  int64_t recomputed_ops = 0;
  std::vector<int64_t> in_use; ///< at the start of each operator, after its place's actions, and at the end
  std::vector<int64_t> peaks;  ///< most bytes since the end of the operator before to its own end; likewise
};

/// Cost: linear in operators, values and actions. `graph` must have no defect.
Simulation simulate(const Graph& graph, const Schedule& schedule);
/// Most bytes in use when nothing leaves early. Cost: as `simulate`.
inline int64_t plain_peak(const Graph& graph) { return simulate(graph, empty_schedule(graph)).peak; }

}  // namespace refrain::graph
