// Plans traced steps with every solver for the same budgets and prints all that is known about them, as JSON. No LibTorch.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <variant>

#include "graph/families.h"
#include "graph/json.h"
#include "plan/plan.h"
#include "refrain/error.h"

namespace refrain::plan {
namespace {

using Json = nlohmann::ordered_json;

struct Args {
  std::vector<std::string> files, families;
  std::vector<int> percents{75, 50, 30};
  int32_t family_ops = 372;
  double bound_seconds = 30.0;
  double program_seconds = 60.0;
};

struct Step {
  std::string name;
  graph::Graph graph;
};

constexpr size_t kProgramOps = 150;  // up to which the integer program over all places can be written down

bool solves_programs(Solver solver) { return solver == Solver::kExact || solver == Solver::kLpRounding; }

std::vector<Solver> solvers_for(const Step& step, const Args& args) {
  std::vector<Solver> solvers = all_solvers();
  if (args.program_seconds <= 0.0) std::erase_if(solvers, solves_programs);
  if (step.graph.ops.size() > kProgramOps) std::erase(solvers, Solver::kExact);
  return solvers;
}

Json to_json(const Plan& plan) {
  Json phases = Json::array();
  for (const Phase& phase : plan.phases)
    phases.push_back({{"name", phase.name},
                      {"seconds", phase.seconds},
                      {"fits", phase.fits},
                      {"peak_bytes", phase.peak},
                      {"added_ns", phase.added_ns}});
  double seconds = 0.0;
  for (const Phase& phase : plan.phases)
    if (!phase.name.starts_with("bound")) seconds += phase.seconds;
  return {{"fits", plan.is_feasible}, {"peak_bytes", plan.peak},     {"added_ns", plan.added_ns},
          {"solver", plan.solver},    {"timed_out", plan.timed_out}, {"seconds", seconds},
          {"phases", phases}};
}

PlanOptions options_of(Solver solver, const Args& args) {
  PlanOptions options;
  options.solver = solver;
  options.bound = false;
  if (solves_programs(solver)) options.time_limit_s = args.program_seconds;
  return options;
}

/// Peak and time are those of `graph::simulate`, for our plans and those of others alike.
Json plans_at(const Step& step, int64_t bytes, const Args& args) {
  Json plans = Json::object();
  Plan ours;
  for (const Solver solver : solvers_for(step, args)) {
    const Plan found = plan(step.graph, Budget::of_bytes(bytes), options_of(solver, args));
    plans[std::string(solver_name(solver))] = to_json(found);
    if (solver == Solver::kAuto) ours = found;
  }
  if (args.bound_seconds <= 0.0) return plans;
  PlanOptions options;
  options.time_limit_s = args.bound_seconds;
  const Plan proven = plan(step.graph, Budget::of_bytes(bytes), options);
  Json phases = Json::array();
  double seconds = 0.0;
  for (const Phase& phase : proven.phases)
    if (phase.name.starts_with("bound")) {
      phases.push_back({{"name", phase.name}, {"seconds", phase.seconds}, {"bound_ns", phase.added_ns}});
      seconds += phase.seconds;
    }
  ours.bound_ns = proven.bound_ns;
  plans["bound"] = {{"bound_ns", proven.bound_ns}, {"proof", proven.proof}, {"gap", ours.gap()},
                    {"added_ns", proven.added_ns}, {"seconds", seconds},    {"phases", phases}};
  return plans;
}

/// Peak of the plan of least peak that a solver has.
int64_t least_peak(const Step& step, Solver solver, int64_t floor, const Args& args) {
  return plan(step.graph, Budget::of_bytes(floor), options_of(solver, args)).peak;
}

Json measure(const Step& step, const Args& args) {
  Planner planner(step.graph, options_of(Solver::kAuto, args));
  const int64_t plain = planner.plain_peak(), floor = planner.floor_bytes();
  const int64_t before = graph::simulate(step.graph, graph::empty_schedule(step.graph)).in_use.front();
  const int64_t step_ns = graph::operators_ns(step.graph);
  Json json{{"name", step.name},    {"ops", step.graph.ops.size()},  {"values", step.graph.values.size()},
            {"step_ns", step_ns},   {"plain_peak_bytes", plain},     {"before_bytes", before},
            {"floor_bytes", floor}, {"least_bytes", Json::object()}, {"budgets", Json::array()}};
  for (const Solver solver : solvers_for(step, args)) {
    if (solver == Solver::kLpRounding) continue;  // a linear program for nothing
    json["least_bytes"][std::string(solver_name(solver))] = least_peak(step, solver, floor, args);
  }
  const int64_t least = json["least_bytes"]["auto"];
  for (const char* of : {"step", "movable"})
    for (const int percent : args.percents) {
      const int64_t from = of == std::string("step") ? before : floor;
      const int64_t bytes = from + (plain - from) * percent / 100;
      Json row{{"of", of}, {"percent", percent}, {"bytes", bytes}};
      if (bytes >= least) row["plans"] = plans_at(step, bytes, args);
      json["budgets"].push_back(std::move(row));
      fmt::print(stderr, "{} {} {} %\n", step.name, of, percent);
    }
  return json;
}

std::vector<Step> steps_of(const Args& args) {
  std::vector<Step> steps;
  for (const std::string& file : args.files) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw FormatError(fmt::format("'{}' cannot be read; expected a traced step", file));
    auto read = graph::read_graph(std::string(std::istreambuf_iterator<char>(in), {}));
    if (const auto* error = std::get_if<FormatError>(&read))
      throw FormatError(fmt::format("'{}': {}", file, error->what()));
    std::string name = file.substr(file.rfind('/') + 1);
    steps.push_back({name.substr(0, name.rfind('.')), std::get<graph::Graph>(std::move(read))});
  }
  for (const graph::Family family : graph::kFamilies)
    if (std::find(args.families.begin(), args.families.end(), graph::family_name(family)) != args.families.end())
      steps.push_back({graph::family_name(family) + "-family", graph::make_family(family, args.family_ops)});
  return steps;
}

int run(int argc, char** argv) {
  Args args;
  CLI::App app{"Plans steps with every solver for the same budgets"};
  app.add_option("files", args.files, "traced steps, as `refrain profile` writes them");
  app.add_option("--families", args.families, "made-up steps: chain, residual, unet, dense, transformer")
      ->delimiter(',');
  app.add_option("--family-ops", args.family_ops, "of each made-up step; 372: a transformer of 12 layers");
  app.add_option("--percents", args.percents, "budgets")->delimiter(',');
  app.add_option("--bound-seconds", args.bound_seconds, "for each bound; 0: none");
  app.add_option("--program-seconds", args.program_seconds, "for each integer program; 0: none");
  CLI11_PARSE(app, argc, argv);
  Json json = Json::array();
  for (const Step& step : steps_of(args)) json.push_back(measure(step, args));
  fmt::print("{}\n", json.dump(1));
  return 0;
}

}  // namespace
}  // namespace refrain::plan

int main(int argc, char** argv) {
  try {
    return refrain::plan::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
