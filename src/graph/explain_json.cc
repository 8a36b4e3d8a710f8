#include <nlohmann/json.hpp>

#include "graph/explain.h"

namespace refrain::graph {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson scopes_json(const Explanation& explanation) {
  OrderedJson list = OrderedJson::array();
  for (const auto& scope : explanation.scopes) {
    list.push_back({{"scope", scope.scope},
                    {"freed_at_peak_bytes", scope.freed_at_peak},
                    {"dropped", scope.dropped},
                    {"runs", scope.runs},
                    {"ns", scope.ns},
                    {"first_place", scope.first_place},
                    {"last_place", scope.last_place},
                    {"what", scope.what}});
  }
  return list;
}

OrderedJson holders_json(const Explanation& explanation) {
  OrderedJson list = OrderedJson::array();
  for (const auto& holder : explanation.holders) {
    list.push_back({{"value", holder.value},
                    {"bytes", holder.bytes},
                    {"op", holder.op},
                    {"scope", holder.scope},
                    {"made", holder.made},
                    {"next_read", holder.next_read},
                    {"temporary", holder.is_temporary}});
  }
  return list;
}

}  // namespace

std::string to_json(const Explanation& e, const std::string& model) {
  const OrderedJson document = {{"kind", "explain_plan"},
                                {"version", 1},
                                {"model", model},
                                {"plain_peak_bytes", e.plain_peak},
                                {"plain_peak_place", e.plain_peak_place},
                                {"peak_bytes", e.peak.bytes},
                                {"peak_place", e.peak.place},
                                {"peak_running", e.peak.running},
                                {"peak_in_recompute", e.peak.in_recompute},
                                {"peak_op", e.peak_op},
                                {"peak_scope", e.peak_scope},
                                {"peak_made_bytes", e.peak.made},
                                {"peak_workspace_bytes", e.peak.workspace},
                                {"peak_outside_bytes", e.peak.outside},
                                {"step_ns", e.step_ns},
                                {"added_ns", e.added_ns},
                                {"recomputed_ops", e.recomputed_ops},
                                {"dropped_values", e.dropped_values},
                                {"scopes", scopes_json(e)},
                                {"holders", holders_json(e)}};
  // a name may hold bytes that are not UTF-8: replaced, not an exception
  return document.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace refrain::graph
