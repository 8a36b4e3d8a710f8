#include "refrain/explain.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "apps/refrain/explain_plan.h"
#include "apps/refrain/steps.h"
#include "apps/refrain/table.h"
#include "refrain/bytes.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

/// Saved tensors that differ in nothing but their region, bytes counted once.
struct Group {
  std::string kept, reason, op, tensor;
  int64_t count = 0;
  Bytes bytes = 0;
};

std::vector<Group> group(const SavedReport& report) {
  std::map<std::tuple<std::string, std::string, std::string, std::string>, Group> groups;
  for (const auto& t : report.tensors) {
    const std::string kept = t.referenced_elsewhere ? "anyway" : t.kept ? "yes" : "no";
    const std::string tensor = fmt::format("{} [{}]", c10::toString(t.dtype), fmt::join(t.sizes, ", "));
    auto& found = groups[{kept, t.reason, t.op, tensor}];
    found = {kept, t.reason, t.op, tensor, found.count + 1, found.bytes + (t.shared ? 0 : t.bytes)};
  }
  std::vector<Group> list;
  for (auto& [key, found] : groups) list.push_back(std::move(found));
  const auto rank = [](const Group& g) { return g.kept == "yes" ? 0 : g.kept == "no" ? 1 : 2; };
  std::stable_sort(list.begin(), list.end(), [&](const Group& a, const Group& b) {
    return std::tuple(rank(a), -a.bytes) < std::tuple(rank(b), -b.bytes);
  });
  return list;
}

std::string show_groups(const SavedReport& report) {
  Table table({"reason", "made by", "tensor", "count", "bytes", "kept"});
  for (const auto& g : group(report))
    table.add({g.reason, g.op, g.tensor, fmt::format("{}", g.count), format_bytes(g.bytes), g.kept});
  // the sums and hints as the library words them
  SavedReport rest = report;
  rest.tensors.clear();
  const std::string text = rest.text();
  return table.str() + text.substr(text.find('\n') + 1);
}

Json tensors_json(const SavedReport& report) {
  Json list = Json::array();
  for (const auto& t : report.tensors) {
    list.push_back({{"op", t.op},
                    {"sizes", t.sizes},
                    {"dtype", c10::toString(t.dtype)},
                    {"bytes", t.bytes},
                    {"region", t.region},
                    {"kept", t.kept},
                    {"referenced_elsewhere", t.referenced_elsewhere},
                    {"shared", t.shared},
                    {"why", t.reason}});
  }
  return list;
}

}  // namespace

int run_explain(const ExplainArgs& args) {
  if (is_plan_file(args.model.name)) return run_explain_plan(args);
  if (!args.dot.empty() || !args.trace.empty())
    throw InvalidArgument(fmt::format(
        "--dot and --trace: found the model '{}'; expected a JSON file with a plan or a traced step", args.model.name));
  check_can_write(args.json, "--json");
  auto model = build_model(args.model);
  model->set_strategy(args.strategy);
  const auto batch = model->synthetic_batch(args.model.seed);
  torch::manual_seed(args.model.seed);
  const auto report = saved_tensors([&] { return model->loss(batch); });

  if (args.json != "-") {
    fmt::print("{}, {} {} a step, strategy {}: tensors that one forward saves for backward\n{}", title(*model),
               model->units_per_batch(), model->unit(), args.strategy, args.all ? report.text() : show_groups(report));
  }
  Json document = document_json("explain", model->name(), config_json(*model));
  document["strategy"] = args.strategy;
  document["kept_bytes"] = report.kept_bytes;
  document["referenced_elsewhere_bytes"] = report.referenced_elsewhere_bytes;
  document["recomputed_bytes"] = report.recomputed_bytes;
  document["regions"] = report.regions;
  document["hints"] = report.hints;
  document["tensors"] = tensors_json(report);
  write_json(args.json, document);
  return kOk;
}

}  // namespace refrain::cli
