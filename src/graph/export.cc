#include "graph/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/json_text.h"
#include "base/saturating.h"
#include "refrain/bytes.h"

namespace refrain::graph {
namespace {

constexpr size_t kDeepestCluster = 8;

template <typename... Args>
void add(std::string& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
}

/// Parts of a module path; deep ones keep the rest in one.
std::vector<std::string> parts(const std::string& scope) {
  std::vector<std::string> list;
  size_t from = 0;
  while (from < scope.size()) {
    const size_t dot = list.size() + 1 < kDeepestCluster ? scope.find('.', from) : std::string::npos;
    list.push_back(scope.substr(from, dot - from));
    from = dot == std::string::npos ? scope.size() : dot + 1;
  }
  return list;
}

struct Fate {
  std::vector<int> drops, runs;  // by value; by operator, the first run too

  Fate(const Graph& graph, const Schedule* schedule) : drops(graph.values.size()), runs(graph.ops.size(), 1) {
    if (schedule == nullptr) return;
    for (const auto& place : schedule->places)
      for (const Action& action : place)
        ++(action.kind == Action::Kind::kDrop ? drops : runs).at(static_cast<size_t>(action.id));
  }

  const char* colour(const Graph& graph, size_t v) const {
    const OpId producer = graph.values[v].producer;
    if (producer == kNone) return "#d9dde1";
    if (runs[static_cast<size_t>(producer)] > 1) return "#e9b13f";
    return drops[v] > 0 ? "#9bbf8f" : "#8fb4d3";
  }
};

class Dot {
 public:
  Dot(const Graph& graph, const Schedule* schedule) : graph_(graph), fate_(graph, schedule) {}

  std::string run() {
    add(out_, "digraph step {{\n  label={};\n  node [shape=box, fontname=\"sans-serif\"];\n",
        json_string(graph_.model));
    clusters();
    for (size_t v = 0; v < graph_.values.size(); ++v) print_value(v);
    for (size_t i = 0; i < graph_.ops.size(); ++i) {
      for (const ValueId v : graph_.ops[i].inputs) add(out_, "  v{} -> o{};\n", v, i);
      for (const ValueId v : graph_.ops[i].outputs) add(out_, "  o{} -> v{};\n", i, v);
    }
    return std::move(out_) + "}\n";
  }

 private:
  void clusters() {
    std::map<std::vector<std::string>, std::vector<size_t>> by_scope;
    for (size_t i = 0; i < graph_.ops.size(); ++i) by_scope[parts(graph_.ops[i].scope)].push_back(i);
    std::vector<std::string> open;
    for (const auto& [scope, ops] : by_scope) {
      const size_t shared =
          static_cast<size_t>(std::mismatch(open.begin(), open.end(), scope.begin(), scope.end()).first - open.begin());
      while (open.size() > shared) close(open);
      while (open.size() < scope.size()) this->open(open, scope[open.size()]);
      for (const size_t i : ops) print_op(i, open.size());
    }
    while (!open.empty()) close(open);
  }

  void open(std::vector<std::string>& open, const std::string& name) {
    open.push_back(name);
    add(out_, "{:{}}subgraph cluster{} {{\n{:{}}label={};\n", "", 2 * open.size(), next_cluster_++, "",
        2 * open.size() + 2, json_string(name));
  }

  void close(std::vector<std::string>& open) {
    add(out_, "{:{}}}}\n", "", 2 * open.size());
    open.pop_back();
  }

  void print_op(size_t i, size_t depth) {
    const Op& op = graph_.ops[i];
    const int runs = fate_.runs[i];
    add(out_, "{:{}}o{} [label={}{}];\n", "", 2 * depth + 2, i,
        json_string(op.name + (runs > 1 ? fmt::format(", {} times", runs) : "")), op.backward ? ", style=rounded" : "");
  }

  void print_value(size_t v) {
    const Value& value = graph_.values[v];
    add(out_, "  v{} [shape=ellipse, style=filled, fillcolor=\"{}\", label=\"{}\"];\n", v, fate_.colour(graph_, v),
        format_bytes(value.bytes));
    if (value.overwrites != kNone) add(out_, "  v{} -> v{} [style=dashed];\n", value.overwrites, v);
  }

  const Graph& graph_;
  const Fate fate_;
  int next_cluster_ = 0;
  std::string out_;
};

class ChromeTrace {
 public:
  ChromeTrace(const Graph& graph, const Schedule& schedule)
      : graph_(graph), schedule_(schedule), simulation_(simulate(graph, schedule)) {}

  std::string run() {
    name_row(kStepRow, "operators");
    name_row(kAgainRow, "recomputed");
    for (size_t i = 0; i <= graph_.ops.size(); ++i) {
      for (const Action& action : schedule_.places[i]) print_action(action);
      event("C", "bytes in use", kStepRow,
            fmt::format("\"args\":{{\"at start\":{},\"most\":{}}}", simulation_.in_use[i], simulation_.peaks[i]));
      if (i < graph_.ops.size()) print_run(static_cast<OpId>(i), kStepRow);
    }
    return "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n" + std::move(events_) + "]}\n";
  }

 private:
  static constexpr int kStepRow = 1, kAgainRow = 2;

  void name_row(int row, const char* name) {
    event("M", "thread_name", row, fmt::format("\"args\":{{\"name\":\"{}\"}}", name));
  }

  /// @param more  further members.
  void event(const char* phase, const std::string& name, int row, const std::string& more) {
    add(events_, "{}{{\"ph\":\"{}\",\"name\":{},\"pid\":1,\"tid\":{},\"ts\":{}.{:03},{}}}\n",
        events_.empty() ? "" : ",", phase, json_string(name), row, now_ns_ / 1000, now_ns_ % 1000, more);
  }

  void print_run(OpId id, int row) {
    const Op& op = graph_.ops[static_cast<size_t>(id)];
    event("X", op.name, row,
          fmt::format("\"dur\":{}.{:03},\"args\":{{\"operator\":{},\"scope\":{}}}", op.ns / 1000, op.ns % 1000, id,
                      json_string(op.scope)));
    now_ns_ = saturating_add(now_ns_, op.ns);
  }

  void print_action(const Action& action) {
    if (action.kind != Action::Kind::kDrop) return print_run(action.id, kAgainRow);
    const Value& value = graph_.values[static_cast<size_t>(action.id)];
    event("i", "drop", kAgainRow,
          fmt::format("\"s\":\"t\",\"args\":{{\"value\":{},\"bytes\":{},\"made by\":{}}}", action.id, value.bytes,
                      value.producer));
  }

  const Graph& graph_;
  const Schedule& schedule_;
  const Simulation simulation_;
  int64_t now_ns_ = 0;
  std::string events_;
};

}  // namespace

std::string to_dot(const Graph& graph, const Schedule* schedule) { return Dot(graph, schedule).run(); }

std::string to_chrome_trace(const Graph& graph, const Schedule& schedule) { return ChromeTrace(graph, schedule).run(); }

}  // namespace refrain::graph
