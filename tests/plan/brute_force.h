#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <queue>
#include <unordered_map>
#include <vector>

#include "graph/schedule.h"

namespace refrain::plan {

/// Least added time of any schedule that the rules of graph/schedule.h allow, by a search over what is there, place by
/// place. Nothing of src/plan is used. For graphs of at most 32 values, and few operators.
class BruteForce {
 public:
  BruteForce(const graph::Graph& graph, int64_t budget) : graph_(graph), budget_(budget) {
    overwritten_.resize(graph.values.size());
    for (const auto& value : graph.values)
      if (value.overwrites >= 0) overwritten_[static_cast<size_t>(value.overwrites)] = true;
  }

  /// Nothing: no schedule fits.
  std::optional<int64_t> least_ns() {
    std::unordered_map<uint32_t, int64_t> states{{0, 0}};
    const auto ends = static_cast<int32_t>(graph_.ops.size());
    for (place_ = 0; place_ <= ends && !states.empty(); ++place_) {
      std::unordered_map<uint32_t, int64_t> begun;
      for (const auto& [there, ns] : states)
        if (const auto next = begin_place(there)) improve(begun, *next, ns);
      states.clear();
      for (const auto& [there, ns] : act(begun))
        if (const auto next = place_ < ends ? run_op(there) : finish(there)) improve(states, *next, ns);
    }
    std::optional<int64_t> best;
    for (const auto& [there, ns] : states) best = best ? std::min(*best, ns) : ns;
    return best;
  }

 private:
  using States = std::unordered_map<uint32_t, int64_t>;

  static void improve(States& states, uint32_t there, int64_t ns) {
    const auto [at, is_new] = states.emplace(there, ns);
    if (!is_new) at->second = std::min(at->second, ns);
  }

  static uint32_t bit(int32_t v) { return uint32_t{1} << v; }
  const graph::Value& value(int32_t v) const { return graph_.values[static_cast<size_t>(v)]; }
  bool at_end() const { return static_cast<size_t>(place_) == graph_.ops.size(); }
  bool outlives(int32_t v) const {
    return static_cast<size_t>(value(v).death) == graph_.ops.size() && !overwritten_[static_cast<size_t>(v)];
  }
  bool is_alive(int32_t v) const {
    return first_place(value(v)) <= place_ && (place_ < value(v).death || (at_end() && outlives(v)));
  }
  int64_t bytes(uint32_t there) const {
    int64_t sum = 0;
    for (int32_t v = 0; v < static_cast<int32_t>(graph_.values.size()); ++v)
      if (there & bit(v)) sum += value(v).bytes;
    return sum;
  }
  int64_t outside() const { return at_end() ? graph_.end_outside : graph_.ops[static_cast<size_t>(place_)].outside; }

  std::optional<uint32_t> begin_place(uint32_t there) const {
    for (int32_t v = 0; v < static_cast<int32_t>(graph_.values.size()); ++v) {
      if (value(v).producer >= 0 || value(v).birth != place_) continue;
      if (!take_over(there, v)) return {};
    }
    if (bytes(there) + (at_end() ? graph_.end_gap : graph_.ops[static_cast<size_t>(place_)].gap) > budget_) return {};
    for (int32_t v = 0; v < static_cast<int32_t>(graph_.values.size()); ++v)
      if (value(v).death == place_ && !is_alive(v)) there &= ~bit(v);
    return there;
  }

  bool take_over(uint32_t& there, int32_t v) const {
    const int32_t old = value(v).overwrites;
    if (old >= 0) {
      if (!(there & bit(old))) return false;
      there &= ~bit(old);
    }
    there |= bit(v);
    return true;
  }

  /// All that actions at this place can lead to. Dijkstra.
  States act(const States& begun) const {
    using Entry = std::pair<int64_t, uint32_t>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
    States known = begun, done;
    for (const auto& [there, ns] : begun) queue.emplace(ns, there);
    while (!queue.empty()) {
      const auto [ns, there] = queue.top();
      queue.pop();
      if (known[there] < ns || done.count(there)) continue;
      done[there] = ns;
      const auto reach = [&](uint32_t next, int64_t next_ns) {
        const auto at = known.find(next);
        if (at != known.end() && at->second <= next_ns) return;
        known[next] = next_ns;
        queue.emplace(next_ns, next);
      };
      for (int32_t v = 0; v < static_cast<int32_t>(graph_.values.size()); ++v)
        if ((there & bit(v)) && (value(v).evictable || !is_alive(v))) reach(there & ~bit(v), ns);
      for (int32_t op = 0; op < place_; ++op)
        for (const bool in_place : {false, true})
          if (const auto next = recompute(there, op, in_place))
            reach(*next, ns + graph_.ops[static_cast<size_t>(op)].ns);
    }
    States fit;
    for (const auto& [there, ns] : done)
      if (bytes(there) + outside() <= budget_) fit[there] = ns;
    return fit;
  }

  std::optional<uint32_t> recompute(uint32_t there, int32_t id, bool in_place) const {
    const graph::Op& op = graph_.ops[static_cast<size_t>(id)];
    if (!op.replayable) return {};
    for (const int32_t v : op.inputs)
      if (!(there & bit(v))) return {};
    int64_t copied = 0, made = 0;
    bool overwrites = false;
    for (const int32_t v : op.outputs) {
      const int32_t old = value(v).overwrites;
      if (old < 0) {
        made += value(v).bytes;
        continue;
      }
      overwrites = true;
      if (in_place && !(there & bit(old))) return {};
      if (!in_place) copied += value(v).bytes;
    }
    if (in_place && !overwrites) return {};
    const int64_t start = bytes(there) + outside() + copied;
    if (std::max(start, start + made + op.workspace) > budget_) return {};
    for (const int32_t v : op.outputs) {
      if (in_place && value(v).overwrites >= 0) there &= ~bit(value(v).overwrites);
      there |= bit(v);
    }
    if (bytes(there) + outside() > budget_) return {};
    return there;
  }

  std::optional<uint32_t> run_op(uint32_t there) const {
    const graph::Op& op = graph_.ops[static_cast<size_t>(place_)];
    for (const int32_t v : op.inputs)
      if (!(there & bit(v))) return {};
    int64_t made = 0;
    for (const int32_t v : op.outputs)
      if (value(v).overwrites < 0) made += value(v).bytes;
    if (bytes(there) + outside() + made + op.workspace > budget_) return {};
    for (const int32_t v : op.outputs)
      if (!take_over(there, v)) return {};
    return there;
  }

  std::optional<uint32_t> finish(uint32_t there) const {
    for (int32_t v = 0; v < static_cast<int32_t>(graph_.values.size()); ++v)
      if (value(v).death == place_ && outlives(v) && !(there & bit(v))) return {};
    return there;
  }

  const graph::Graph& graph_;
  const int64_t budget_;
  std::vector<char> overwritten_;
  int32_t place_ = 0;
};

}  // namespace refrain::plan
