#include "plan/max_flow.h"

#include <algorithm>

namespace refrain::plan {

int32_t MaxFlow::add_arc(int32_t from, int32_t to, int64_t capacity) {
  const auto arc = static_cast<int32_t>(arcs_.size());
  arcs_.push_back({to, first_[static_cast<size_t>(from)], 0});
  first_[static_cast<size_t>(from)] = arc;
  arcs_.push_back({from, first_[static_cast<size_t>(to)], 0});
  first_[static_cast<size_t>(to)] = arc + 1;
  capacity_.push_back(capacity);
  capacity_.push_back(0);
  return arc;
}

bool MaxFlow::find_levels() {
  level_.assign(first_.size(), -1);
  queue_.clear();
  queue_.push_back(0);
  level_[0] = 0;
  for (size_t head = 0; head < queue_.size(); ++head) {
    const int32_t node = queue_[head];
    for (int32_t a = first_[static_cast<size_t>(node)]; a >= 0; a = arcs_[static_cast<size_t>(a)].next) {
      ++steps_;
      const Arc& arc = arcs_[static_cast<size_t>(a)];
      if (arc.left <= 0 || level_[static_cast<size_t>(arc.to)] >= 0) continue;
      level_[static_cast<size_t>(arc.to)] = level_[static_cast<size_t>(node)] + 1;
      queue_.push_back(arc.to);
    }
  }
  return level_[1] >= 0;
}

/// Augments one path of the level graph, without recursion. @return the flow that was added; 0: no path is left.
int64_t MaxFlow::push() {
  path_.clear();
  int32_t node = 0;
  while (true) {
    if (node == 1) {
      int64_t flow = kInfinite;
      for (const int32_t a : path_) flow = std::min(flow, arcs_[static_cast<size_t>(a)].left);
      for (const int32_t a : path_) {
        arcs_[static_cast<size_t>(a)].left -= flow;
        arcs_[static_cast<size_t>(a ^ 1)].left += flow;
      }
      return flow;
    }
    int32_t& a = at_[static_cast<size_t>(node)];
    while (a >= 0) {
      const Arc& arc = arcs_[static_cast<size_t>(a)];
      ++steps_;
      if (arc.left > 0 && level_[static_cast<size_t>(arc.to)] == level_[static_cast<size_t>(node)] + 1) break;
      a = arc.next;
    }
    if (a >= 0) {
      path_.push_back(a);
      node = arcs_[static_cast<size_t>(a)].to;
      continue;
    }
    if (node == 0) return 0;
    const int32_t back = path_.back();
    path_.pop_back();
    node = arcs_[static_cast<size_t>(back ^ 1)].to;
    at_[static_cast<size_t>(node)] = arcs_[static_cast<size_t>(at_[static_cast<size_t>(node)])].next;
  }
}

int64_t MaxFlow::run() {
  for (size_t a = 0; a < arcs_.size(); ++a) arcs_[a].left = capacity_[a];
  int64_t flow = 0;
  while (find_levels()) {
    at_ = first_;
    while (const int64_t more = push()) {
      flow += more;
      if (flow >= kInfinite) return flow;
    }
  }
  return flow;
}

}  // namespace refrain::plan
