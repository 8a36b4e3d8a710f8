#include "apps/refrain/traced_file.h"

#include <fmt/format.h>

#include "apps/refrain/json_file.h"
#include "base/json_text.h"
#include "graph/json.h"
#include "graph/scale.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

constexpr int64_t kBatchesVersion = 1;

[[noreturn]] void refuse(const std::string& file, const std::string& member, const std::string& expected) {
  throw FormatError(
      fmt::format("'{}': `{}`: expected {}; trace again, with profile --batches", file, member, expected));
}

std::vector<TracedBatch> traces_of(const nlohmann::json& document, const std::string& file) {
  const auto found = document.find("traces");
  if (found == document.end() || !found->is_array() || found->size() != 2)
    refuse(file, "traces", "a list of two traced steps");
  std::vector<TracedBatch> traces;
  for (const auto& trace : *found) {
    const auto name = fmt::format("traces[{}]", traces.size());
    if (!trace.is_object() || !trace.contains("graph")) refuse(file, name, "an object with `batch` and `graph`");
    const auto batch = trace.find("batch");
    if (batch == trace.end() || !batch->is_number_integer() || *batch < 1)
      refuse(file, name + ".batch", "a number of examples");
    traces.push_back({batch->get<int64_t>(), accepted(graph::graph_of(trace.at("graph")), file, name + ".graph")});
  }
  return traces;
}

}  // namespace

std::string batches_json(const std::string& model, const std::vector<TracedBatch>& traces) {
  std::string text = fmt::format("{{\"kind\":\"batches\",\"version\":{},\"model\":{},\"traces\":[", kBatchesVersion,
                                 json_string(model));
  const char* separator = "\n";
  for (const auto& trace : traces) {
    text += fmt::format("{}{{\"batch\":{},\"graph\":{}}}", separator, trace.batch, graph::to_json(trace.graph));
    separator = ",\n";
  }
  return text + "]}\n";
}

graph::Graph scaled_step(const std::string& model, const std::vector<TracedBatch>& traces, int64_t batch) {
  const auto &one = traces.at(0), &other = traces.at(1);
  auto scaled = graph::scale({one.graph, one.batch}, {other.graph, other.batch}, batch);
  scaled.model = fmt::format("{}, batch {} as scaled from {} and {}", model, batch, one.batch, other.batch);
  return scaled;
}

graph::Graph read_step(const std::string& file, int64_t batch) {
  const auto document = accepted(graph::parse_json(read_file(file, "a traced step")), file);
  if (!graph::is_kind(document, "batches", kBatchesVersion)) {
    if (!graph::is_kind(document, "graph", graph::kGraphVersion))
      throw FormatError(
          fmt::format("'{}': found {}; expected kind \"graph\" version {} or kind \"batches\" version {}; "
                      "write it again, with refrain profile",
                      file, graph::found_kind(document), graph::kGraphVersion, kBatchesVersion));
    auto step = accepted(graph::graph_of(document), file);
    if (batch == 0) return step;
    throw InvalidArgument(
        fmt::format("--batch {}: '{}' has one step, of the batch it was traced with; leave it out, or "
                    "trace two with profile --batches",
                    batch, file));
  }
  auto traces = traces_of(document, file);
  if (batch == 0)
    throw InvalidArgument(
        fmt::format("'{}' has a step with {} and one with {} examples: expected --batch, how many to plan for", file,
                    traces[0].batch, traces[1].batch));
  for (auto& trace : traces)
    if (trace.batch == batch) return std::move(trace.graph);
  const auto model = document.value("model", nlohmann::json());
  return scaled_step(model.is_string() ? model.get<std::string>() : "", traces, batch);
}

}  // namespace refrain::cli
