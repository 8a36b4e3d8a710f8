#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// A training step as a graph: which operators ran, in which order, what each read and made, how many bytes were in use. No LibTorch here.
namespace refrain::graph {

/// Index in `Graph::ops`; also a place in the step: the moment right before that operator runs. `Graph::ops.size()` is the end.
using OpId = int32_t;
/// Index in `Graph::values`.
using ValueId = int32_t;

inline constexpr int32_t kNone = -1;

/// The bytes of one storage between two writes. Views of a storage are the same value.
///
/// *Source*: no producer; its bytes come from outside of the step (parameters, inputs), or from an operator that cannot
/// be recomputed.
struct Value {
  int64_t bytes = 0;  ///< of the whole storage, as the allocator counts them
  OpId producer = kNone;
  int32_t output = 0;  ///< position in the producer's `outputs`
  /// The value whose storage this one took over, at whose death it is first resident: its producer wrote in place
  ValueId overwrites = kNone;
  OpId birth = 0;  ///< a source is resident before this operator; others from the end of their producer on
  /// In the baseline, freed or overwritten before this operator. `ops.size()`: outlives the step, unless overwritten
  OpId death = 0;
  bool evictable = false;  ///< may be evicted between its uses. Never a source
};

struct Op {
  std::string name;              ///< as `aten::addmm`
  std::string scope;             ///< module path, as `blocks.3.mlp`, or empty
  int64_t ns = 0;                ///< time of one run
  std::vector<ValueId> inputs;   ///< values whose bytes it reads, each once
  std::vector<ValueId> outputs;  ///< values it makes, those it overwrites included
  int64_t workspace = 0;   ///< peak while it runs, less the bytes at its start and of new outputs. May be negative
  int64_t outside = 0;     ///< bytes at its start that are of no value of the graph
  int64_t gap = 0;         ///< most bytes of no value since the end of the operator before, beside resident values
  bool replayable = true;  ///< may be recomputed: no effect, all it read is known
  bool random = false;     ///< draws from a generator; a replay draws the same
  bool backward = false;   ///< ran in the engine
};

/// One step. Operators, and values with a producer, in the order of their making; an operator's inputs were made before it.
///
/// Bytes in use at the start of operator i in the baseline: `outside` + those of all values v with birth(v) <= i <
/// death(v) that a later one has not overwritten (`birth` as a place: producer + 1). Values that share a storage are
/// never alive at the same place.
struct Graph {
  std::string model;  ///< free text: what ran
  std::vector<Op> ops;
  std::vector<Value> values;
  int64_t end_outside = 0;  ///< as `Op::outside`, at the end of the step
  int64_t end_gap = 0;
};

/// First place where `value` is resident: 0 or later for a source, else right after its producer.
inline OpId first_place(const Value& value) { return value.producer == kNone ? value.birth : value.producer + 1; }

/// Describes the first defect of `graph` (indices, order, lifetimes, two values of a storage alive at once, negative
/// bytes), or empty.
std::string find_defect(const Graph& graph);

/// Time of all operators, once each.
int64_t operators_ns(const Graph& graph);

}  // namespace refrain::graph
