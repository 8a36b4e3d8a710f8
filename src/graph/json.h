#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>

#include "graph/schedule.h"
#include "refrain/error.h"

/// Graphs and schedules as JSON documents, `"kind"` `graph` and `schedule`, `"version"` 1.
///
/// What is zero, false or empty is left out. An operator is {name, scope, ns, inputs, outputs, workspace, outside, gap,
/// once (it cannot be recomputed), random, backward}; a value {bytes, birth, death, overwrites, evictable}: its
/// producer is the operator that has it among its outputs; `birth` is for sources. A schedule has the `fingerprint` of
/// its graph and [[place, "drop" | "recompute" | "recompute_in_place", id, ...]], several actions a place.
///
/// Readers take any bytes. An error is a value: where (a byte, or a member such as `ops[3].inputs[1]`), what was
/// found, what was expected. Unknown members are ignored. Time and memory are linear in the input's
/// size; no recursion. Threads: any.
namespace refrain::graph {

/// Identifies a step by its operators, what they read and make, bytes and lifetimes; not by times, model, workspace or
/// bytes outside. FNV-1a, 16 hexadecimal digits.
std::string fingerprint(const Graph& graph);

std::string to_json(const Graph& graph);

std::string to_json(const Graph& graph, const Schedule& schedule);

/// Reads a graph; the result has no defect.
std::variant<Graph, FormatError> read_graph(std::string_view text);
std::variant<Graph, FormatError> graph_of(const nlohmann::json& document);  ///< as part of another document

/// Reads a schedule for `graph`, by its fingerprint; `simulate` says whether it can run.
std::variant<Schedule, FormatError> read_schedule(std::string_view text, const Graph& graph);
std::variant<Schedule, FormatError> schedule_of(const nlohmann::json& document, const Graph& graph);

/// Parses JSON of any bytes, nested 64 deep at most. For documents that contain graphs.
std::variant<nlohmann::json, FormatError> parse_json(std::string_view text);

inline constexpr int64_t kGraphVersion = 1;  ///< of documents of kind `graph` and of kind `schedule`

/// Whether a document has this `kind`, and this integer as its `version`.
bool is_kind(const nlohmann::json& document, const std::string& kind, int64_t version);

/// What a document says of itself, for refusals: `kind "plan" version 2`, or what is missing of it.
std::string found_kind(const nlohmann::json& document);

}  // namespace refrain::graph
