#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "capi/errors.h"
#include "graph/json.h"
#include "graph/schedule.h"
#include "plan/plan.h"
#include "refrain/error.h"

using namespace refrain;
using Json = nlohmann::json;

struct refrain_graph_planner_t {
  refrain_graph_planner_t(graph::Graph given, const plan::PlanOptions& options)
      : graph(std::move(given)), planner(graph, options) {}
  graph::Graph graph;
  plan::Planner planner;
};

namespace {

graph::Graph graph_from(const char* text) {
  auto read = graph::read_graph(text);
  if (const auto* error = std::get_if<FormatError>(&read)) throw *error;
  return std::get<graph::Graph>(std::move(read));
}

/// With the bytes in use at the start of each operator, and the peak of each.
Json json_of(const graph::Graph& graph, const plan::Plan& plan) {
  Json json = {{"fits", plan.is_feasible},
               {"peak_bytes", plan.peak},
               {"plain_peak_bytes", plan.plain_peak},
               {"least_bytes", plan.least_bytes},
               {"floor_bytes", plan.floor_bytes},
               {"added_ns", plan.added_ns},
               {"step_ns", plan.step_ns},
               {"recomputed_ops", plan.recomputed_ops},
               {"solver", plan.solver},
               {"timed_out", plan.timed_out}};
  json["schedule"] = Json::parse(graph::to_json(graph, plan.schedule));
  const auto run = graph::simulate(graph, plan.schedule);
  json["in_use"] = run.in_use;
  json["peaks"] = run.peaks;
  return json;
}

}  // namespace

refrain_graph_planner_t* refrain_graph_planner_open(const char* trace, double time_limit_s) {
  return capi::made([&] {
    capi::require(trace, "refrain_graph_planner_open", "trace");
    plan::PlanOptions options;
    options.bound = false;
    if (!(time_limit_s < 0.0)) options.time_limit_s = time_limit_s;
    return new refrain_graph_planner_t(graph_from(trace), options);
  });
}

int32_t refrain_graph_planner_read(refrain_graph_planner_t* planner, int64_t* plain, int64_t* least) {
  return capi::guarded([&] {
    capi::require(planner, "refrain_graph_planner_read", "planner");
    if (plain) *plain = planner->planner.plain_peak();
    if (least) *least = planner->planner.least_bytes();
  });
}

char* refrain_graph_planner_plan(refrain_graph_planner_t* planner, int64_t bytes, double fraction) {
  return capi::made([&] {
    capi::require(planner, "refrain_graph_planner_plan", "planner");
    const auto budget = fraction < 0.0 ? plan::Budget::of_bytes(bytes) : plan::Budget::of_fraction(fraction);
    return capi::owned_text(json_of(planner->graph, planner->planner.plan(budget)).dump());
  });
}

char* refrain_graph_planner_pareto(refrain_graph_planner_t* planner, int32_t points) {
  return capi::made([&] {
    capi::require(planner, "refrain_graph_planner_pareto", "planner");
    if (points < 2)
      throw InvalidArgument("[refrain_graph_planner_pareto] `points` is " + std::to_string(points) +
                            ", expected 2 or more");
    Json all = Json::array();
    for (const auto& plan : planner->planner.pareto(points)) all.push_back(json_of(planner->graph, plan));
    return capi::owned_text(all.dump());
  });
}

void refrain_graph_planner_close(refrain_graph_planner_t* planner) { delete planner; }
