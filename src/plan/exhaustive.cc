#include "plan/exhaustive.h"

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <vector>

namespace refrain::plan {
namespace {

using graph::Action;
using graph::kNone;
using graph::OpId;
using graph::ValueId;
using Mask = uint64_t;

size_t index(int32_t id) { return static_cast<size_t>(id); }
Mask bit(ValueId id) { return Mask{1} << id; }

/// A set of resident values, and how it was reached.
struct Node {
  Mask there;
  int64_t bytes, ns;
  int32_t parent;
  OpId place;
  Action action;  ///< that led from the parent here; an `id` of `kNone`: the step went on
};

class Search {
 public:
  Search(const graph::Graph& graph, int64_t budget, size_t most_states, Effort& effort)
      : graph_(graph),
        budget_(budget),
        most_(most_states),
        effort_(effort),
        dies_(graph.ops.size() + 2),
        comes_(graph.ops.size() + 1) {
    std::vector<char> overwritten(graph.values.size());
    for (const auto& value : graph.values)
      if (value.overwrites != kNone) overwritten[index(value.overwrites)] = true;
    for (size_t v = 0; v < graph.values.size(); ++v) {
      const auto& value = graph.values[v];
      const bool outlives = index(value.death) == graph.ops.size() && !overwritten[v];
      dies_[index(value.death) + (outlives ? 1 : 0)] |= bit(static_cast<ValueId>(v));
      if (value.producer == kNone) comes_[index(value.birth)].push_back(static_cast<ValueId>(v));
      if (outlives) outlives_ |= bit(static_cast<ValueId>(v));
    }
    for (const auto& op : graph.ops) {
      Mask reads = 0, overwrites = 0;
      for (const ValueId v : op.inputs) reads |= bit(v);
      for (const ValueId v : op.outputs)
        if (value(v).overwrites != kNone) overwrites |= bit(value(v).overwrites);
      reads_.push_back(reads);
      overwrites_.push_back(overwrites);
    }
  }

  ExhaustiveResult run() {
    ExhaustiveResult result;
    std::vector<int32_t> front{add({0, 0, 0, kNone, 0, {Action::Kind::kDrop, kNone}})};
    const auto ends = static_cast<OpId>(graph_.ops.size());
    for (place_ = 0; place_ <= ends; ++place_) {
      alive_ = alive_ & ~dies_[index(place_)];
      for (const ValueId v : comes_[index(place_)]) alive_ = came(alive_, v);
      const std::vector<int32_t> acted = act(begin_place(front));
      if (nodes_.size() > most_ || effort_.is_over()) return result;
      front.clear();
      for (const int32_t at : acted) place_ < ends ? run_op(at, front) : finish(at, front);
      if (place_ < ends)
        for (const ValueId v : graph_.ops[index(place_)].outputs) alive_ = came(alive_, v);
    }
    result.status = ExhaustiveResult::Status::kInfeasible;
    int32_t best = kNone;
    for (const int32_t at : front)
      if (best == kNone || node(at).ns < node(best).ns) best = at;
    if (best == kNone) return result;
    result.status = ExhaustiveResult::Status::kOptimal;
    result.added_ns = node(best).ns;
    result.schedule = graph::empty_schedule(graph_);
    for (int32_t at = best; at != kNone; at = node(at).parent)
      if (node(at).action.id != kNone) result.schedule.places[index(node(at).place)].push_back(node(at).action);
    for (auto& actions : result.schedule.places) std::reverse(actions.begin(), actions.end());
    return result;
  }

 private:
  const graph::Value& value(ValueId id) const { return graph_.values[index(id)]; }
  const Node& node(int32_t at) const { return nodes_[index(at)]; }
  bool at_end() const { return index(place_) == graph_.ops.size(); }

  Mask came(Mask there, ValueId id) const {
    if (value(id).overwrites != kNone) there &= ~bit(value(id).overwrites);
    return there | bit(id);
  }

  int64_t bytes_of(Mask there) const {
    int64_t sum = 0;
    for (; there != 0; there &= there - 1) sum += graph_.values[static_cast<size_t>(__builtin_ctzll(there))].bytes;
    return sum;
  }

  int32_t add(const Node& node) {
    nodes_.push_back(node);
    effort_.spend(8);
    return static_cast<int32_t>(nodes_.size()) - 1;
  }

  std::vector<int32_t> begin_place(const std::vector<int32_t>& front) {
    std::vector<int32_t> begun;
    const int64_t gap = at_end() ? graph_.end_gap : graph_.ops[index(place_)].gap;
    for (const int32_t at : front) {
      Mask there = node(at).there;
      bool is_possible = true;
      for (const ValueId v : comes_[index(place_)]) {
        const ValueId old = value(v).overwrites;
        is_possible = is_possible && (old == kNone || (there & bit(old)) != 0);
        there = came(there, v);
      }
      if (!is_possible || bytes_of(there) + gap > budget_) continue;
      there &= ~dies_[index(place_)];
      begun.push_back(add({there, bytes_of(there), node(at).ns, at, place_, {Action::Kind::kDrop, kNone}}));
    }
    return begun;
  }

  /// Dijkstra over actions. @return all sets that the operator can begin with, each once with least time.
  std::vector<int32_t> act(const std::vector<int32_t>& begun) {
    using Entry = std::pair<int64_t, int32_t>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
    std::unordered_map<Mask, int64_t> known;
    outside_ = at_end() ? graph_.end_outside : graph_.ops[index(place_)].outside;
    const auto reach = [&](const Node& next) {
      const auto [at, is_new] = known.emplace(next.there, next.ns);
      if (!is_new && at->second <= next.ns) return;
      at->second = next.ns;
      queue.emplace(next.ns, add(next));
    };
    for (const int32_t at : begun) reach(Node(node(at)));
    std::vector<int32_t> reached;
    while (!queue.empty() && nodes_.size() <= most_ && !effort_.is_over()) {
      const auto [ns, at] = queue.top();
      queue.pop();
      const Node here = node(at);
      if (known[here.there] < ns) continue;
      known[here.there] = -1;  // done
      if (here.bytes + outside_ <= budget_) reached.push_back(at);
      for (Mask rest = here.there; rest != 0; rest &= rest - 1) {
        const auto v = static_cast<ValueId>(__builtin_ctzll(rest));
        if ((alive_ & bit(v)) != 0 && !value(v).evictable) continue;
        reach({here.there & ~bit(v), here.bytes - value(v).bytes, ns, at, place_, {Action::Kind::kDrop, v}});
      }
      for (OpId op = 0; op < place_; ++op) {
        if (!graph_.ops[index(op)].replayable || (reads_[index(op)] & ~here.there) != 0) continue;
        recompute(here, at, op, false, reach);
        if (overwrites_[index(op)] != 0 && (overwrites_[index(op)] & ~here.there) == 0)
          recompute(here, at, op, true, reach);
      }
    }
    return reached;
  }

  template <typename Reach>
  void recompute(const Node& here, int32_t at, OpId id, bool in_place, const Reach& reach) {
    const graph::Op& op = graph_.ops[index(id)];
    Mask there = here.there;
    int64_t copied = 0, made = 0;
    for (const ValueId v : op.outputs) {
      if (value(v).overwrites == kNone)
        made += value(v).bytes;
      else if (!in_place)
        copied += value(v).bytes;
    }
    const int64_t start = here.bytes + outside_ + copied;
    if (std::max(start, start + made + op.workspace) > budget_) return;
    if (in_place) there &= ~overwrites_[index(id)];
    for (const ValueId v : op.outputs) there |= bit(v);
    const int64_t bytes = bytes_of(there);
    if (bytes + outside_ > budget_) return;
    reach({there,
           bytes,
           here.ns + op.ns,
           at,
           place_,
           {in_place ? Action::Kind::kRecomputeInPlace : Action::Kind::kRecompute, id}});
  }

  void run_op(int32_t at, std::vector<int32_t>& front) {
    const graph::Op& op = graph_.ops[index(place_)];
    const Node here = node(at);
    if (((reads_[index(place_)] | overwrites_[index(place_)]) & ~here.there) != 0) return;
    int64_t made = 0;
    for (const ValueId v : op.outputs)
      if (value(v).overwrites == kNone) made += value(v).bytes;
    if (here.bytes + outside_ + made + op.workspace > budget_) return;
    Mask there = here.there;
    for (const ValueId v : op.outputs) there = came(there, v);
    front.push_back(add({there, bytes_of(there), here.ns, at, place_, {Action::Kind::kDrop, kNone}}));
  }

  void finish(int32_t at, std::vector<int32_t>& front) {
    if ((outlives_ & ~node(at).there) == 0) front.push_back(at);
  }

  const graph::Graph& graph_;
  const int64_t budget_;
  const size_t most_;
  Effort& effort_;
  std::vector<Mask> reads_, overwrites_;
  std::vector<Mask> dies_;                   // by place
  std::vector<std::vector<ValueId>> comes_;  // sources by place
  Mask outlives_ = 0, alive_ = 0;
  OpId place_ = 0;
  int64_t outside_ = 0;
  std::vector<Node> nodes_;
};

}  // namespace

ExhaustiveResult search_exhaustively(const graph::Graph& graph, int64_t budget, size_t most_states, Effort& effort) {
  if (graph.values.size() > 64) return {};
  return Search(graph, budget, most_states, effort).run();
}

}  // namespace refrain::plan
