#include "apps/refrain/pareto_document.h"

#include <algorithm>

#include "apps/refrain/steps.h"

namespace refrain::cli {
namespace {

Json point(int64_t peak_bytes, int64_t added_ns, int64_t step_ns) {
  const auto part = static_cast<double>(added_ns) / static_cast<double>(std::max<int64_t>(step_ns, 1));
  return {{"peak_bytes", peak_bytes}, {"added_ms", static_cast<double>(added_ns) / 1e6}, {"overhead", part}};
}

Json planned(const PlanSeries& series) {
  Json points = Json::array();
  for (const plan::Plan& plan : series.plans) {
    if (!plan.is_feasible) continue;
    points.push_back(point(plan.peak, plan.added_ns, plan.step_ns));
    points.back()["recomputed_ops"] = plan.recomputed_ops;
  }
  return {{"name", series.name}, {"role", "planned"}, {"points", points}};
}

Json bounds(const PlanSeries& series) {
  Json points = Json::array();
  for (const plan::Plan& plan : series.plans)
    if (plan.proof != "none") points.push_back(point(plan.budget_bytes, plan.bound_ns, plan.step_ns));
  return {{"name", "lower bound"}, {"role", "bound"}, {"points", points}};
}

}  // namespace

void add_series(Json& document, const graph::Graph& graph, const std::vector<PlanSeries>& series) {
  const graph::Simulation plain = graph::simulate(graph, graph::empty_schedule(graph));
  const int64_t step_ns = graph::operators_ns(graph);
  document["config"] = {{"operators", graph.ops.size()}, {"values", graph.values.size()}};
  document["machine"] = machine_json();
  document["plain"] = {{"peak_bytes", plain.peak}, {"step_ms_median", static_cast<double>(step_ns) / 1e6}};
  Json lines = Json::array();
  for (const PlanSeries& line : series) lines.push_back(planned(line));
  if (!series.empty()) lines.push_back(bounds(series.front()));
  std::erase_if(lines.get_ref<Json::array_t&>(), [](const Json& line) { return line["points"].empty(); });
  document["series"] = std::move(lines);
}

}  // namespace refrain::cli
