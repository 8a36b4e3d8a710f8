/// Schedules of `text.h`.
#include <fmt/format.h>

#include <limits>
#include <map>

#include "graph/scanner.h"
#include "graph/text.h"

namespace refrain::graph {
namespace {

class ScheduleParser {
 public:
  ScheduleParser(std::string_view text, const ParsedGraph& parsed) : in_(text), parsed_(parsed) {}

  Schedule run() {
    Schedule schedule = empty_schedule(parsed_.graph);
    while (in_.next_line()) {
      auto& actions = schedule.places[place()];
      in_.need(':');
      if (in_.at_line_end()) continue;
      do actions.push_back(action());
      while (in_.take(','));
      in_.end_line();
    }
    return schedule;
  }

 private:
  size_t place() {
    const size_t end = parsed_.graph.ops.size();
    if (!in_.at_name()) return static_cast<size_t>(in_.number(0, static_cast<int64_t>(end)));
    const size_t at = in_.at();
    if (const std::string name = in_.name(""); name != "end") in_.refuse_at(at, "'" + name + "'", "a place or 'end'");
    return end;
  }

  Action action() {
    static const std::map<std::string, Action::Kind> kKinds{{"drop", Action::Kind::kDrop},
                                                            {"recompute", Action::Kind::kRecompute},
                                                            {"recompute_in_place", Action::Kind::kRecomputeInPlace}};
    const size_t at = in_.at();
    const std::string word = in_.name("drop, recompute or recompute_in_place");
    const auto kind = kKinds.find(word);
    if (kind == kKinds.end()) in_.refuse_at(at, "'" + word + "'", "drop, recompute or recompute_in_place");
    return {kind->second, target(kind->second == Action::Kind::kDrop)};
  }

  int32_t target(bool is_value) {
    if (!in_.at_name())
      return static_cast<int32_t>(in_.number(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
    const size_t at = in_.at();
    const std::string name = in_.name("");
    const auto found = parsed_.ids.find(name);
    if (found == parsed_.ids.end()) in_.refuse_at(at, "'" + name + "'", "the name of a value");
    const OpId producer = parsed_.graph.values[static_cast<size_t>(found->second)].producer;
    if (!is_value && producer == kNone) in_.refuse_at(at, "'" + name + "', a source", "an output of an operator");
    return is_value ? found->second : producer;
  }

  Scanner in_;
  const ParsedGraph& parsed_;
};

std::string target_text(const Graph& graph, const Action& action) {
  if (action.kind == Action::Kind::kDrop) {
    const bool is_value = action.id >= 0 && static_cast<size_t>(action.id) < graph.values.size();
    return is_value ? value_text(action.id) : std::to_string(action.id);
  }
  const bool has_output = action.id >= 0 && static_cast<size_t>(action.id) < graph.ops.size() &&
                          !graph.ops[static_cast<size_t>(action.id)].outputs.empty();
  return has_output ? value_text(graph.ops[static_cast<size_t>(action.id)].outputs[0]) : std::to_string(action.id);
}

}  // namespace

Schedule parse_schedule(std::string_view text, const ParsedGraph& graph) { return ScheduleParser(text, graph).run(); }

std::string to_text(const Graph& graph, const Schedule& schedule) {
  constexpr const char* kWords[] = {"drop", "recompute", "recompute_in_place"};
  std::string text;
  for (size_t p = 0; p < schedule.places.size(); ++p) {
    if (schedule.places[p].empty()) continue;
    text += p == graph.ops.size() ? "end" : std::to_string(p);
    const char* before = ": ";
    for (const Action& action : schedule.places[p]) {
      text += fmt::format("{}{} {}", before, kWords[static_cast<size_t>(action.kind)], target_text(graph, action));
      before = ", ";
    }
    text += '\n';
  }
  return text;
}

}  // namespace refrain::graph
