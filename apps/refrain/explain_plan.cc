#include "apps/refrain/explain_plan.h"

#include <fmt/format.h>

#include <filesystem>

#include "apps/refrain/json_file.h"
#include "apps/refrain/traced_file.h"
#include "base/atomic_file.h"
#include "graph/explain.h"
#include "graph/export.h"
#include "graph/json.h"
#include "plan/plan_file.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

struct Planned {
  graph::Graph graph;
  graph::Schedule schedule;
};

/// A member of a plan.
const nlohmann::json& part(const nlohmann::json& plan, const char* name, const std::string& file) {
  const auto found = plan.find(name);
  if (found == plan.end())
    throw FormatError(
        fmt::format("'{}': `{}`: found nothing; expected this member of a plan; write it again", file, name));
  return *found;
}

Planned read_planned(const std::string& file) {
  const auto document = accepted(graph::parse_json(read_file(file, "a plan or a traced step")), file);
  if (graph::is_kind(document, "graph", graph::kGraphVersion)) {
    Planned planned{accepted(graph::graph_of(document), file), {}};
    planned.schedule = graph::empty_schedule(planned.graph);
    return planned;
  }
  if (!graph::is_kind(document, "plan", plan::kPlanVersion)) {
    throw FormatError(
        fmt::format("'{}': found {}; expected kind \"plan\" version {} or kind \"graph\" version {}; "
                    "write it again",
                    file, graph::found_kind(document), plan::kPlanVersion, graph::kGraphVersion));
  }
  Planned planned{accepted(graph::graph_of(part(document, "graph", file)), file), {}};
  planned.schedule = accepted(graph::schedule_of(part(document, "schedule", file), planned.graph), file);
  return planned;
}

void write_text(const std::string& path, const std::string& text) {
  if (path == "-")
    fmt::print("{}", text);
  else if (!path.empty())
    write_file_atomically(path, text);
}

}  // namespace

bool is_plan_file(const std::string& name) {
  std::error_code ignored;
  return name.ends_with(".json") || std::filesystem::is_regular_file(name, ignored);
}

int run_explain_plan(const ExplainArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.dot, "--dot");
  check_can_write(args.trace, "--trace");
  const Planned planned = read_planned(args.model.name);
  const auto explanation = graph::explain(planned.graph, planned.schedule, args.all ? planned.graph.values.size() : 12);
  if (!explanation.error.empty())
    throw FormatError(
        fmt::format("'{}': the plan's schedule cannot run: {}; plan again", args.model.name, explanation.error));
  if (args.json != "-" && args.dot != "-" && args.trace != "-") {
    if (!planned.graph.model.empty()) fmt::print("{}: ", planned.graph.model);
    fmt::print("{}", args.all ? graph::to_text(explanation, explanation.scopes.size()) : graph::to_text(explanation));
  }
  if (!args.json.empty()) write_text(args.json, graph::to_json(explanation, planned.graph.model));
  if (!args.dot.empty()) write_text(args.dot, graph::to_dot(planned.graph, &planned.schedule));
  if (!args.trace.empty()) write_text(args.trace, graph::to_chrome_trace(planned.graph, planned.schedule));
  return kOk;
}

}  // namespace refrain::cli
