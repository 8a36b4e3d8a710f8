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

Json scopes_json(const graph::Explanation& explanation) {
  Json list = Json::array();
  for (const auto& scope : explanation.scopes) {
    list.push_back({{"scope", scope.scope},
                    {"freed_at_peak_bytes", scope.freed_at_peak},
                    {"dropped", scope.dropped},
                    {"runs", scope.runs},
                    {"ns", scope.ns},
                    {"first_place", scope.first_place},
                    {"last_place", scope.last_place},
                    {"what", scope.what}});
  }
  return list;
}

Json holders_json(const graph::Explanation& explanation) {
  Json list = Json::array();
  for (const auto& holder : explanation.holders) {
    list.push_back({{"value", holder.value},
                    {"bytes", holder.bytes},
                    {"op", holder.op},
                    {"scope", holder.scope},
                    {"made", holder.made},
                    {"next_read", holder.next_read},
                    {"temporary", holder.is_temporary}});
  }
  return list;
}

Json explanation_json(const graph::Explanation& e, const std::string& model) {
  return {{"kind", "explain_plan"},
          {"version", 1},
          {"model", model},
          {"plain_peak_bytes", e.plain_peak},
          {"plain_peak_place", e.plain_peak_place},
          {"peak_bytes", e.peak.bytes},
          {"peak_place", e.peak.place},
          {"peak_running", e.peak.running},
          {"peak_in_recompute", e.peak.in_recompute},
          {"peak_op", e.peak_op},
          {"peak_scope", e.peak_scope},
          {"peak_made_bytes", e.peak.made},
          {"peak_workspace_bytes", e.peak.workspace},
          {"peak_outside_bytes", e.peak.outside},
          {"step_ns", e.step_ns},
          {"added_ns", e.added_ns},
          {"recomputed_ops", e.recomputed_ops},
          {"dropped_values", e.dropped_values},
          {"scopes", scopes_json(e)},
          {"holders", holders_json(e)}};
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
  write_json(args.json, explanation_json(explanation, planned.graph.model));
  if (!args.dot.empty()) write_text(args.dot, graph::to_dot(planned.graph, &planned.schedule));
  if (!args.trace.empty()) write_text(args.trace, graph::to_chrome_trace(planned.graph, planned.schedule));
  return kOk;
}

}  // namespace refrain::cli
