#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "graph/graph.h"
#include "refrain/error.h"

/// Files with traced steps: what `profile` writes, and `plan` and `pareto` read.
namespace refrain::cli {

/// What was read of a file. @param part  of it, as `traces[0]`; or empty. @throws FormatError that names both.
template <typename T>
T accepted(std::variant<T, FormatError> read, const std::string& file, const std::string& part = "") {
  if (const auto* error = std::get_if<FormatError>(&read))
    throw FormatError(
        fmt::format("'{}': {}{}", file, part.empty() ? part : fmt::format("`{}`: ", part), error->what()));
  return std::get<T>(std::move(read));
}

/// A step with this many examples.
struct TracedBatch {
  int64_t batch = 0;
  graph::Graph graph;
};

/// One step of a model with two batches, as a document: {"kind": "batches", "version": 1, "model", "traces": [{"batch",
/// "graph"}, the same]}.
std::string batches_json(const std::string& model, const std::vector<TracedBatch>& traces);

/// The step in a file.
/// @param batch  0 for a file with one step; for one with two batches, how many examples: as traced, or scaled from
/// both.
/// @throws FormatError if the file is none of them; InvalidArgument if `batch` does not go with it.
graph::Graph read_step(const std::string& file, int64_t batch);

/// The step with `batch` examples, from two that were traced.
graph::Graph scaled_step(const std::string& model, const std::vector<TracedBatch>& traces, int64_t batch);

}  // namespace refrain::cli
