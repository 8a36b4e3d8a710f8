#include "graph/explain.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "base/saturating.h"
#include "refrain/bytes.h"

namespace refrain::graph {
namespace {

constexpr size_t kMostNames = 4;

class Explainer {
 public:
  Explainer(const Graph& graph, const Schedule& schedule) : graph_(graph), schedule_(schedule) {}

  Explanation run(size_t most) {
    const Simulation simulation = simulate(graph_, schedule_);
    result_.error = simulation.error;
    if (!result_.error.empty()) return std::move(result_);
    result_.added_ns = simulation.added_ns;
    result_.recomputed_ops = simulation.recomputed_ops;
    result_.step_ns = operators_ns(graph_);
    result_.peak = find_peak(graph_, schedule_);
    explain_peak(most);
    explain_actions();
    explain_why();
    finish_scopes();
    return std::move(result_);
  }

 private:
  struct Found {
    Explanation::Scope scope;
    std::map<std::string, int64_t> names;
    OpId first = kNone;  // of the step, of those that something happens to
  };

  const Value& value(ValueId id) const { return graph_.values[static_cast<size_t>(id)]; }
  const Op& op(OpId id) const { return graph_.ops[static_cast<size_t>(id)]; }
  bool is_op(OpId id) const { return id >= 0 && static_cast<size_t>(id) < graph_.ops.size(); }

  void explain_peak(size_t most) {
    const OpId shown = is_op(result_.peak.running) ? result_.peak.running : result_.peak.place;
    if (is_op(shown)) {
      result_.peak_op = op(shown).name;
      result_.peak_scope = op(shown).scope;
    }
    std::vector<ValueId> there = result_.peak.there;
    std::stable_sort(there.begin(), there.end(), [&](ValueId a, ValueId b) { return value(a).bytes > value(b).bytes; });
    const auto next_read = reads_from(result_.peak.place);
    for (const ValueId id : there) {
      if (result_.holders.size() < most) {
        result_.holders.push_back(holder(id, next_read[static_cast<size_t>(id)]));
      } else {
        ++result_.other_holders;
        result_.other_bytes += value(id).bytes;
      }
    }
  }

  /// Finds, by value, the first operator from `place` on that reads it.
  std::vector<OpId> reads_from(OpId place) const {
    std::vector<OpId> next(graph_.values.size(), kNone);
    for (auto i = static_cast<OpId>(graph_.ops.size()); i-- > place;)
      for (const ValueId v : op(i).inputs) next[static_cast<size_t>(v)] = i;
    return next;
  }

  Explanation::Holder holder(ValueId id, OpId next_read) const {
    const OpId made = value(id).producer;
    const OpId shown = made != kNone ? made : next_read;
    return {id,
            value(id).bytes,
            shown == kNone ? "" : op(shown).name,
            shown == kNone ? "" : op(shown).scope,
            made,
            next_read,
            is_temporary(value(id))};
  }

  /// Values die after the gap of their place.
  bool is_temporary(const Value& value) const {
    const Peak& peak = result_.peak;
    const bool is_after_gap = peak.running != kNone || peak.in_recompute;
    return value.death < static_cast<OpId>(graph_.ops.size()) && value.death + (is_after_gap ? 0 : 1) <= peak.place;
  }

  Found& scope_of(OpId id) {
    Found& found = scopes_[op(id).scope];
    found.scope.scope = op(id).scope;
    found.first = found.first == kNone ? id : std::min(found.first, id);
    return found;
  }

  void explain_actions() {
    for (size_t p = 0; p < schedule_.places.size(); ++p) {
      for (const Action& action : schedule_.places[p]) {
        if (action.kind == Action::Kind::kDrop) {
          ++result_.dropped_values;
          ++scope_of(value(action.id).producer).scope.dropped;
        } else {
          add_run(action.id, static_cast<OpId>(p));
        }
      }
    }
  }

  void add_run(OpId id, OpId place) {
    Found& found = scope_of(id);
    ++found.names[op(id).name];
    ++found.scope.runs;
    found.scope.ns = saturating_add(found.scope.ns, op(id).ns);
    if (found.scope.first_place == kNone) found.scope.first_place = place;
    found.scope.last_place = place;
  }

  void explain_why() {
    const Schedule plain = empty_schedule(graph_);
    const Peak peak = find_peak(graph_, plain);
    result_.plain_peak = peak.bytes;
    result_.plain_peak_place = peak.place;
    const auto left = values_there(graph_, schedule_, peak.place);
    for (const ValueId v : values_there(graph_, plain, peak.place))
      if (value(v).producer != kNone && !std::binary_search(left.begin(), left.end(), v))
        scope_of(value(v).producer).scope.freed_at_peak += value(v).bytes;
  }

  void finish_scopes() {
    std::vector<Found*> order;
    for (auto& [name, found] : scopes_) order.push_back(&found);
    std::sort(order.begin(), order.end(), [](const Found* a, const Found* b) {
      return std::pair(-a->scope.freed_at_peak, a->first) < std::pair(-b->scope.freed_at_peak, b->first);
    });
    for (Found* found : order) {
      std::vector<std::pair<int64_t, std::string>> names;
      for (const auto& [name, count] : found->names) names.emplace_back(-count, name);
      std::sort(names.begin(), names.end());
      for (const auto& [count, name] : names) found->scope.what.push_back(fmt::format("{} {}", -count, name));
      result_.scopes.push_back(std::move(found->scope));
    }
  }

  const Graph& graph_;
  const Schedule& schedule_;
  std::map<std::string, Found> scopes_;
  Explanation result_;
};

std::string milliseconds(int64_t ns) { return fmt::format("{:.3f} ms", static_cast<double>(ns) / 1e6); }

std::string scope_text(const std::string& scope) { return scope.empty() ? "(no module)" : scope; }

std::string op_text(const std::string& op, const std::string& scope) {
  return scope.empty() ? fmt::format("'{}'", op) : fmt::format("'{}' of {}", op, scope);
}

std::string peak_text(const Explanation& e) {
  if (e.peak_op.empty()) return "at the end";
  const std::string what = op_text(e.peak_op, e.peak_scope);
  if (e.peak.running == kNone) return fmt::format("before operator {} {}", e.peak.place, what);
  if (e.peak.in_recompute)
    return fmt::format("before operator {}, while operator {} {} is recomputed", e.peak.place, e.peak.running, what);
  return fmt::format("while operator {} {} runs", e.peak.place, what);
}

/// Columns as wide as their widest cell, numbers to the right.
std::string table(const std::vector<std::vector<std::string>>& rows, const std::string& to_the_right) {
  std::vector<size_t> widths(to_the_right.size());
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c)
      line += to_the_right[c] == 'r' ? fmt::format("  {:>{}}", row[c], widths[c])
                                     : fmt::format("  {:<{}}", row[c], widths[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string holders_text(const Explanation& e) {
  std::vector<std::vector<std::string>> rows{{"bytes", "made by", "module", "at", "read next at", ""}};
  const auto place = [](OpId id) { return id == kNone ? std::string("-") : std::to_string(id); };
  for (const auto& h : e.holders)
    rows.push_back({format_bytes(h.bytes), h.made == kNone ? "(source)" : h.op, scope_text(h.scope), place(h.made),
                    place(h.next_read), h.is_temporary ? "temporary" : ""});
  if (e.other_holders > 0)
    rows.push_back({format_bytes(e.other_bytes), fmt::format("({} others)", e.other_holders), "", "", "", ""});
  if (e.peak.made != 0) rows.push_back({format_bytes(e.peak.made), "(outputs of what runs)", "", "", "", ""});
  if (e.peak.workspace != 0) rows.push_back({format_bytes(e.peak.workspace), "(its workspace)", "", "", "", ""});
  if (e.peak.outside != 0) rows.push_back({format_bytes(e.peak.outside), "(outside of the graph)", "", "", "", ""});
  return "held at the peak\n" + table(rows, "rllrrl");
}

std::string what_text(const std::vector<std::string>& what) {
  const size_t shown = std::min(what.size(), kMostNames);
  std::string text =
      fmt::format("{}", fmt::join(what.begin(), what.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (shown < what.size()) text += fmt::format(", {} more", what.size() - shown);
  return text;
}

std::vector<std::string> scope_row(const Explanation::Scope& s) {
  std::string places = s.first_place == kNone ? "-" : std::to_string(s.first_place);
  if (s.last_place != s.first_place) places += fmt::format(" to {}", s.last_place);
  return {scope_text(s.scope),       format_bytes(s.freed_at_peak),
          std::to_string(s.dropped), std::to_string(s.runs),
          milliseconds(s.ns),        places,
          what_text(s.what)};
}

std::string scopes_text(const Explanation& e, size_t most) {
  if (e.scopes.empty()) return "nothing is dropped\n";
  std::vector<std::vector<std::string>> rows{{"module", "freed", "dropped", "recomputed", "time", "before", "what"}};
  for (size_t i = 0; i < std::min(most, e.scopes.size()); ++i) rows.push_back(scope_row(e.scopes[i]));
  if (e.scopes.size() > most) {
    Explanation::Scope rest;
    for (size_t i = most; i < e.scopes.size(); ++i) {
      rest.freed_at_peak += e.scopes[i].freed_at_peak;
      rest.dropped += e.scopes[i].dropped;
      rest.runs += e.scopes[i].runs;
      rest.ns = saturating_add(rest.ns, e.scopes[i].ns);
    }
    rest.scope = fmt::format("({} others)", e.scopes.size() - most);
    rows.push_back(scope_row(rest));
  }
  return fmt::format(
             "dropped and recomputed, by module; freed: bytes at operator {}, where the baseline has its peak\n",
             e.plain_peak_place) +
         table(rows, "lrrrrll");
}

}  // namespace

Explanation explain(const Graph& graph, const Schedule& schedule, size_t most) {
  return Explainer(graph, schedule).run(most);
}

std::string to_text(const Explanation& e, size_t most) {
  if (!e.error.empty()) return fmt::format("this schedule cannot run: {}\n", e.error);
  const double part = e.step_ns == 0 ? 0 : 100.0 * static_cast<double>(e.added_ns) / static_cast<double>(e.step_ns);
  return fmt::format("peak {} {}; baseline {}\n", format_bytes(e.peak.bytes), peak_text(e),
                     format_bytes(e.plain_peak)) +
         fmt::format("adds {} to {} ({:.1f} %): {} operators recomputed, {} values dropped\n", milliseconds(e.added_ns),
                     milliseconds(e.step_ns), part, e.recomputed_ops, e.dropped_values) +
         holders_text(e) + scopes_text(e, most);
}

}  // namespace refrain::graph
