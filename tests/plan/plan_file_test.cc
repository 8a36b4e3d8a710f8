#include "plan/plan_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "graph/families.h"

namespace refrain::plan {
namespace {

using Json = nlohmann::json;

const graph::Graph& step() {
  static const auto graph = graph::make_transformer(2);
  return graph;
}

const Plan& planned() {
  static const Plan plan = plan::plan(step(), Budget::of_fraction(0.5));
  return plan;
}

std::string refused(const std::string& text) {
  const auto read = read_plan(text);
  const auto* error = std::get_if<FormatError>(&read);
  return error == nullptr ? "" : error->what();
}

TEST(PlanFile, ComesBackAsItWas) {
  const std::string text = to_json(step(), planned());
  const auto read = read_plan(text);
  ASSERT_TRUE(std::holds_alternative<PlannedGraph>(read)) << std::get<FormatError>(read).what();
  const Plan& plan = std::get<PlannedGraph>(read).plan;
  EXPECT_EQ(plan.schedule, planned().schedule);
  EXPECT_EQ(plan.is_feasible, planned().is_feasible);
  EXPECT_EQ(plan.solver, planned().solver);
  EXPECT_EQ(plan.proof, planned().proof);
  EXPECT_EQ(plan.budget_bytes, planned().budget_bytes);
  EXPECT_EQ(plan.peak, planned().peak);
  EXPECT_EQ(plan.plain_peak, planned().plain_peak);
  EXPECT_EQ(plan.floor_bytes, planned().floor_bytes);
  EXPECT_EQ(plan.added_ns, planned().added_ns);
  EXPECT_EQ(plan.step_ns, planned().step_ns);
  EXPECT_EQ(plan.bound_ns, planned().bound_ns);
  EXPECT_EQ(to_json(std::get<PlannedGraph>(read).graph, plan), text);
}

TEST(PlanFile, ServesAStepWithOtherTimes) {
  auto later = step();
  for (auto& op : later.ops) op.ns *= 2;
  const auto read = read_plan(to_json(step(), planned()), later);
  ASSERT_TRUE(std::holds_alternative<Plan>(read)) << std::get<FormatError>(read).what();
  EXPECT_EQ(std::get<Plan>(read).added_ns, 2 * planned().added_ns);
}

TEST(PlanFile, IsRefusedForAnotherStep) {
  const auto read = read_plan(to_json(step(), planned()), graph::make_transformer(3));
  EXPECT_TRUE(std::holds_alternative<FormatError>(read));
}

TEST(PlanFile, RefusalsSayWhere) {
  const auto with = [](const char* name, Json value) {
    Json json = Json::parse(to_json(step(), planned()));
    if (value.is_null())
      json.erase(name);
    else
      json[name] = std::move(value);
    return refused(json.dump());
  };
  EXPECT_NE(refused("").find("JSON"), std::string::npos);
  EXPECT_NE(refused("[]").find("expected a plan"), std::string::npos);
  const std::string expected = "; expected kind \"plan\" version 1";
  EXPECT_NE(with("kind", "graph").find("found kind \"graph\" version 1" + expected), std::string::npos);
  EXPECT_NE(with("version", 2).find("found kind \"plan\" version 2" + expected), std::string::npos);
  EXPECT_NE(with("version", nullptr).find("found kind \"plan\" without a version" + expected), std::string::npos);
  EXPECT_NE(with("schedule", nullptr).find("`schedule`: found nothing"), std::string::npos);
  EXPECT_NE(with("graph", nullptr).find("`graph`: found nothing"), std::string::npos);
  EXPECT_NE(with("budget_bytes", -1).find("`budget_bytes`: found -1"), std::string::npos);
  EXPECT_NE(with("bound_ns", 1.5).find("`bound_ns`: found 1.5"), std::string::npos);
  EXPECT_NE(with("bound_ns", UINT64_MAX).find("`bound_ns`"), std::string::npos);
  EXPECT_NE(with("solver", 1).find("`solver`: found something that is not a string"), std::string::npos);
  Json schedule = Json::parse(to_json(step(), planned()))["schedule"];
  schedule["places"] = Json::array({Json::array({3, "drop", 0})});
  EXPECT_NE(with("schedule", schedule).find("cannot run"), std::string::npos);
}

TEST(PlanFile, AnyBytesAreReadOrRefused) {
  const std::string text =
      to_json(graph::make_transformer(1), plan::plan(graph::make_transformer(1), Budget::of_fraction(0.5)));
  std::mt19937_64 dice(1);
  int64_t refusals = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string changed = text;
    for (uint64_t k = 0; k <= dice() % 4; ++k) {
      const size_t at = dice() % changed.size();
      if (dice() % 3 == 0)
        changed.erase(at, 1 + dice() % 8);
      else
        changed[at] = static_cast<char>(dice() % 3 == 0 ? dice() : '0' + dice() % 10);
    }
    refusals += !refused(changed).empty();
  }
  EXPECT_GT(refusals, 300);
  for (size_t length = 0; length < text.size() - 1; length += 97) EXPECT_NE(refused(text.substr(0, length)), "");
}

}  // namespace
}  // namespace refrain::plan
