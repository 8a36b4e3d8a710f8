#include "plan/plan.h"

#include <fmt/format.h>

#include "apps/refrain/budget_strategy.h"
#include "apps/refrain/commands.h"
#include "apps/refrain/html_file.h"
#include "apps/refrain/pareto_document.h"
#include "apps/refrain/table.h"
#include "apps/refrain/traced_file.h"
#include "base/atomic_file.h"
#include "graph/json.h"
#include "plan/plan_file.h"
#include "refrain/bytes.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

plan::PlanOptions options_of(const PlanArgs& args, const graph::Graph& graph) {
  plan::PlanOptions options;
  options.solver = plan::solver_by_name(args.solver);
  if (args.time_limit > 0.0) options.time_limit_s = args.time_limit;
  options.seed = args.seed;
  options.bound = args.bound;
  options.saved_ops = args.saved_ops;
  for (const std::string& file : args.starts)
    options.starts.push_back(accepted(plan::read_plan(read_file(file, "a plan"), graph), file).schedule);
  return options;
}

double percent(int64_t part, int64_t of) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(std::max<int64_t>(1, of));
}

Json plan_json(const plan::Plan& plan) {
  Json phases = Json::array();
  for (const plan::Phase& phase : plan.phases)
    phases.push_back({{"name", phase.name},
                      {"seconds", phase.seconds},
                      {"steps", phase.steps},
                      {"fits", phase.fits},
                      {"peak_bytes", phase.peak},
                      {"added_ns", phase.added_ns}});
  return {{"is_feasible", plan.is_feasible},
          {"solver", plan.solver},
          {"budget_bytes", plan.budget_bytes},
          {"peak_bytes", plan.peak},
          {"plain_peak_bytes", plan.plain_peak},
          {"floor_bytes", plan.floor_bytes},
          {"least_bytes", plan.least_bytes},
          {"added_ns", plan.added_ns},
          {"step_ns", plan.step_ns},
          {"recomputed_ops", plan.recomputed_ops},
          {"bound_ns", plan.bound_ns},
          {"gap", plan.gap()},
          {"proof", plan.proof},
          {"timed_out", plan.timed_out},
          {"phases", phases}};
}

std::string show(const plan::Plan& plan) {
  std::string text = fmt::format(
      "baseline peak {}\nbudget        {}\npeak          {}{}\n"
      "added time    {:.2f} % of {:.3f} ms, {} operators recomputed\n",
      format_bytes(plan.plain_peak), format_bytes(plan.budget_bytes), format_bytes(plan.peak),
      plan.is_feasible ? "" : ", does not fit: the lowest peak found", percent(plan.added_ns, plan.step_ns),
      static_cast<double>(plan.step_ns) / 1e6, plan.recomputed_ops);
  if (!plan.is_feasible)
    text += fmt::format("lower bound   {}: no plan has a lower peak{}\n", format_bytes(plan.floor_bytes),
                        plan.proof == "none" ? "; whether one fits the budget is unknown" : "");
  else if (plan.proof != "none")
    text += fmt::format("lower bound   {:.2f} % ({}), gap {:.2f} %\n", percent(plan.bound_ns, plan.step_ns),
                        plan.proof == "exact" ? "proven" : "by " + plan.proof, 100.0 * plan.gap());
  text += fmt::format("solver        {}\n", plan.solver);
  Table table({"phase", "seconds", "work", "added", "peak"});
  for (const plan::Phase& phase : plan.phases) {
    const bool is_bound = phase.name.starts_with("bound");
    table.add({phase.name, fmt::format("{:.3f}", phase.seconds), fmt::format("{}", phase.steps),
               fmt::format("{:.2f} %", percent(phase.added_ns, plan.step_ns)),
               is_bound ? "" : format_bytes(phase.peak) + (phase.fits ? "" : " OVER")});
  }
  return plan.phases.empty() ? text : text + table.str();
}

/// By one solver alone, to be drawn beside others.
PlanSeries plans_of(const std::string& solver, const PlanArgs& args, const graph::Graph& graph) {
  plan::PlanOptions options = options_of(args, graph);
  options.solver = plan::solver_by_name(solver);
  options.bound = false;
  options.starts.clear();
  return {solver, plan::Planner(graph, options).pareto(args.points)};
}

}  // namespace

int run_plan(const PlanArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.output, "--output");
  const plan::Budget budget = parse_budget(args.budget, "--budget");
  const graph::Graph graph = read_step(args.file, args.batch);
  const plan::Plan plan = plan::plan(graph, budget, options_of(args, graph));
  if (args.json != "-" && args.output != "-") {
    if (!graph.model.empty()) fmt::print("{}\n", graph.model);
    fmt::print("{}", show(plan));
  }
  Json document = new_document("plan_summary");
  document.update(plan_json(plan));
  write_json(args.json, document);
  if (!plan.is_feasible) return kOutOfMemory;
  if (args.output == "-")
    fmt::print("{}", plan::to_json(graph, plan));
  else if (!args.output.empty())
    write_file_atomically(args.output, plan::to_json(graph, plan));
  return kOk;
}

int run_pareto(const PlanArgs& args) {
  check_can_write(args.json, "--json");
  check_can_write(args.html, "--html");
  const graph::Graph graph = read_step(args.file, args.batch);
  plan::Planner planner(graph, options_of(args, graph));
  const auto plans = planner.pareto(args.points);
  std::vector<PlanSeries> series{{args.solver == "auto" ? "refrain" : args.solver, plans}};
  for (const std::string& name : args.beside) series.push_back(plans_of(name, args, graph));
  Json document{{"kind", "pareto"},
                {"version", 1},
                {"model", graph.model},
                {"fingerprint", graph::fingerprint(graph)},
                {"plain_peak_bytes", planner.plain_peak()},
                {"least_bytes", planner.least_bytes()},
                {"floor_bytes", planner.floor_bytes()},
                {"points", Json::array()}};
  Table table({"fraction", "budget", "peak", "added time", "lower bound", "proof", "recomputed", "solver"});
  for (size_t k = 0; k < plans.size(); ++k) {
    const plan::Plan& plan = plans[k];
    Json point = plan_json(plan);
    point["fraction"] = static_cast<double>(k) / static_cast<double>(plans.size() - 1);
    document["points"].push_back(std::move(point));
    table.add({fmt::format("{:.3f}", static_cast<double>(k) / static_cast<double>(plans.size() - 1)),
               format_bytes(plan.budget_bytes), format_bytes(plan.peak),
               plan.is_feasible ? fmt::format("{:.2f} %", percent(plan.added_ns, plan.step_ns)) : "does not fit",
               fmt::format("{:.2f} %", percent(plan.bound_ns, plan.step_ns)), plan.proof,
               fmt::format("{}", plan.recomputed_ops), plan.solver});
  }
  add_series(document, graph, series);
  if (args.json != "-" && args.html != "-")
    fmt::print("{}{}baseline peak {}, lower bound of the peak {}\n{}", graph.model, graph.model.empty() ? "" : ": ",
               format_bytes(planner.plain_peak()), format_bytes(planner.floor_bytes()), table.str());
  write_json(args.json, document);
  write_html(args.html, {document});
  return kOk;
}

}  // namespace refrain::cli
