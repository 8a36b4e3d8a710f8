#include "plan/plan_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "graph/json.h"

namespace refrain::plan {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostNumber = int64_t{1} << 60;

FormatError refusal(const std::string& where, const std::string& found, const std::string& expected) {
  return FormatError(fmt::format("[refrain::plan] {}: found {}; expected {}", where, found, expected));
}

/// Reads a plan's members. Throws `FormatError`, which does not escape from this file.
class Document {
 public:
  explicit Document(const Json& json) : json_(json) {
    if (!json.is_object())
      throw refusal("the document", "something that is not an object", "a plan, as refrain plan writes it");
    if (!graph::is_kind(json, "plan", kPlanVersion))
      throw refusal("the document", graph::found_kind(json), fmt::format("kind \"plan\" version {}", kPlanVersion));
  }

  const Json& member(const char* name) const {
    const auto found = json_.find(name);
    if (found == json_.end()) throw refusal(fmt::format("`{}`", name), "nothing", "this member of a plan");
    return *found;
  }

  int64_t number(const char* name) const {
    const Json& json = member(name);
    const bool is_integer = json.is_number_unsigned() ? json.get<uint64_t>() <= static_cast<uint64_t>(kMostNumber)
                                                      : json.is_number_integer() && json.get<int64_t>() >= 0;
    if (!is_integer || json.get<int64_t>() > kMostNumber)
      throw refusal(fmt::format("`{}`", name), json.is_number() ? json.dump() : "something that is not a number",
                    "an integer, 0 or more");
    return json.get<int64_t>();
  }

  std::string text(const char* name) const {
    const Json& json = member(name);
    if (!json.is_string()) throw refusal(fmt::format("`{}`", name), "something that is not a string", "a string");
    return json.get<std::string>();
  }

 private:
  const Json& json_;
};

Json parsed(std::string_view text) {
  auto json = graph::parse_json(text);
  if (const auto* error = std::get_if<FormatError>(&json)) throw *error;
  return std::get<Json>(std::move(json));
}

/// Reads the members, and computes what follows from the graph.
Plan make_plan(const Document& document, const graph::Graph& graph) {
  Plan plan;
  auto schedule = graph::schedule_of(document.member("schedule"), graph);
  if (const auto* error = std::get_if<FormatError>(&schedule)) throw *error;
  plan.schedule = std::get<graph::Schedule>(std::move(schedule));
  plan.solver = document.text("solver");
  plan.proof = document.text("proof");
  plan.budget_bytes = document.number("budget_bytes");
  plan.floor_bytes = document.number("floor_bytes");
  plan.least_bytes = document.number("least_bytes");
  plan.bound_ns = document.number("bound_ns");
  const auto run = graph::simulate(graph, plan.schedule);
  if (!run.error.empty()) throw refusal("`schedule`", "one that cannot run: " + run.error, "one that runs; plan again");
  plan.peak = run.peak;
  plan.added_ns = run.added_ns;
  plan.recomputed_ops = run.recomputed_ops;
  plan.is_feasible = run.peak <= plan.budget_bytes;
  plan.plain_peak = graph::plain_peak(graph);
  plan.step_ns = graph::operators_ns(graph);
  return plan;
}

}  // namespace

std::string to_json(const graph::Graph& graph, const Plan& plan) {
  return fmt::format(
      "{{\"kind\":\"plan\",\"version\":{},\"fingerprint\":{},\"model\":{},\"solver\":{},\n"
      "\"is_feasible\":{},\"budget_bytes\":{},\"peak_bytes\":{},\"plain_peak_bytes\":{},"
      "\"floor_bytes\":{},\"least_bytes\":{},\n"
      "\"added_ns\":{},\"step_ns\":{},\"recomputed_ops\":{},\"bound_ns\":{},\"gap\":{:.6f},\"proof\":{},\n"
      "\"schedule\":{},\n\"graph\":{}}}\n",
      kPlanVersion, json_string(graph::fingerprint(graph)), json_string(graph.model), json_string(plan.solver),
      plan.is_feasible, plan.budget_bytes, plan.peak, plan.plain_peak, plan.floor_bytes, plan.least_bytes,
      plan.added_ns, plan.step_ns, plan.recomputed_ops, plan.bound_ns, plan.gap(), json_string(plan.proof),
      graph::to_json(graph, plan.schedule), graph::to_json(graph));
}

std::variant<PlannedGraph, FormatError> read_plan(std::string_view text) {
  try {
    const Json json = parsed(text);
    const Document document(json);
    auto graph = graph::graph_of(document.member("graph"));
    if (const auto* error = std::get_if<FormatError>(&graph)) return *error;
    PlannedGraph planned{std::get<graph::Graph>(std::move(graph)), {}};
    planned.plan = make_plan(document, planned.graph);
    return planned;
  } catch (const FormatError& error) {
    return error;
  }
}

std::variant<Plan, FormatError> read_plan(std::string_view text, const graph::Graph& graph) {
  try {
    const Json json = parsed(text);
    return make_plan(Document(json), graph);
  } catch (const FormatError& error) {
    return error;
  }
}

}  // namespace refrain::plan
