#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "graph/schedule.h"
#include "refrain/error.h"

/// Graphs and schedules as JSON documents, `"kind"` `graph` and `schedule`, `"version"` 1.
///
/// What is zero, false or empty is left out. An operator is {name, scope, ns, inputs, outputs, workspace, outside, gap,
/// once (it cannot run again), random, backward}; a value {bytes, birth, death, overwrites, evictable}: its producer is
/// the operator that has it among its outputs; `birth` is for sources. A schedule has the `fingerprint` of its graph
/// and [[place, "drop" | "recompute" | "recompute_in_place", id, ...]], several actions a place.
///
/// Readers take any bytes. A refusal is a value: where (a byte, or a member such as `ops[3].inputs[1]`), what was
/// found, what was expected. Members that are not known are passed over. Time and memory are linear in the input's
/// size; no recursion. Threads: any.
namespace refrain::graph {

/// Which step it is: operators, what they read and make, bytes and lifetimes; not times, model, workspace or bytes
/// outside. FNV-1a, 16 hexadecimal digits.
std::string fingerprint(const Graph& graph);

std::string to_json(const Graph& graph);

std::string to_json(const Graph& graph, const Schedule& schedule);

/// A graph that is read has no defect.
std::variant<Graph, FormatError> read_graph(std::string_view text);
std::variant<Graph, FormatError> graph_of(const nlohmann::json& document);  ///< as part of another document

/// A schedule for `graph`, by its fingerprint; whether it can run, `simulate` says.
std::variant<Schedule, FormatError> read_schedule(std::string_view text, const Graph& graph);
std::variant<Schedule, FormatError> schedule_of(const nlohmann::json& document, const Graph& graph);

/// JSON of any bytes, nested 64 deep at most. For documents that have graphs in them.
std::variant<nlohmann::json, FormatError> parse_json(std::string_view text);

}  // namespace refrain::graph
