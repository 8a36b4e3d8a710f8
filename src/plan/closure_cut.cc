#include "plan/closure_cut.h"

#include <algorithm>

namespace refrain::plan {

ClosureCut::ClosureCut(const Problem& problem, OpId place, bool keeps_dead)
    : p_(problem),
      place_(place),
      keeps_dead_(keeps_dead),
      value_node_(problem.items.size(), -1),
      op_node_(static_cast<size_t>(problem.ends), -1),
      keep_arc_(problem.items.size(), -1),
      run_arc_(static_cast<size_t>(problem.ends), -1) {
  for (size_t v = 0; v < p_.items.size(); ++v) {
    const Problem::Item& item = p_.items[v];
    if (!item.movable || item.first > place) continue;
    const auto reads = p_.reads[static_cast<ValueId>(v)];
    if (reads.empty() || reads.back() < place || is_read_there(static_cast<ValueId>(v))) continue;
    flow_.add_arc(0, value_node(static_cast<ValueId>(v)), MaxFlow::kInfinite);
  }
  for (size_t k = 0; k < todo_.size(); ++k) {
    const OpId op = todo_[k];
    const int32_t node = op_node_[static_cast<size_t>(op)];
    for (const ValueId v : p_.op(op).inputs) {
      const Problem::Item& item = p_.item(v);
      if ((!item.movable && item.death > place) || is_read_there(v)) continue;
      if (item.producer == graph::kNone)
        flow_.add_arc(node, 1, MaxFlow::kInfinite);  // cannot be recomputed
      else
        flow_.add_arc(node, value_node(v), MaxFlow::kInfinite);
    }
  }
}

int32_t ClosureCut::value_node(ValueId id) {
  int32_t& node = value_node_[static_cast<size_t>(id)];
  if (node >= 0) return node;
  node = flow_.add_node();
  const int32_t producer = op_node(p_.item(id).producer);
  const Problem::Item& item = p_.item(id);
  const bool is_alive = item.first <= place_ && place_ < item.death;
  const bool dead_kept = !is_alive && keeps_dead_ && p_.op(item.producer).replayable;
  keep_arc_[static_cast<size_t>(id)] = flow_.add_arc(node, producer, is_alive || dead_kept ? 0 : MaxFlow::kInfinite);
  if (is_alive) keepable_.push_back(id);
  if (dead_kept) dead_.push_back(id);
  return node;
}

bool ClosureCut::is_read_there(ValueId id) const {
  if (!p_.item(id).movable) return false;
  const auto needs = p_.needs[place_];
  return std::find(needs.begin(), needs.end(), id) != needs.end();
}

int32_t ClosureCut::op_node(OpId op) {
  int32_t& node = op_node_[static_cast<size_t>(op)];
  if (node >= 0) return node;
  node = flow_.add_node();
  const bool may_run = p_.op(op).replayable;
  run_arc_[static_cast<size_t>(op)] = flow_.add_arc(node, 1, may_run ? p_.op(op).ns : MaxFlow::kInfinite);
  if (may_run) {
    runnable_.push_back(op);
    todo_.push_back(op);
  }
  return node;
}

bool ClosureCut::is_kept(ValueId id) const {
  if (is_read_there(id)) return true;
  const int32_t node = value_node_[static_cast<size_t>(id)];
  if (node < 0 || !flow_.is_source_side(node)) return false;
  return !flow_.is_source_side(op_node_[static_cast<size_t>(p_.item(id).producer)]);
}

bool ClosureCut::runs_again(OpId op) const {
  const int32_t node = op_node_[static_cast<size_t>(op)];
  return node >= 0 && flow_.is_source_side(node);
}

}  // namespace refrain::plan
