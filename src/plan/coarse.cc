#include "plan/coarse.h"

#include <algorithm>

namespace refrain::plan {

Rows::Rows(size_t rows, const std::vector<std::pair<int32_t, int32_t>>& pairs) : first_(rows + 1), ids_(pairs.size()) {
  for (const auto& [row, id] : pairs) ++first_[static_cast<size_t>(row) + 1];
  for (size_t r = 1; r < first_.size(); ++r) first_[r] += first_[r - 1];
  std::vector<uint32_t> next(first_.begin(), first_.end() - 1);
  for (const auto& [row, id] : pairs) ids_[next[static_cast<size_t>(row)]++] = id;
}

namespace {

class Maker {
 public:
  Maker(const graph::Graph& graph, Problem& problem) : graph_(graph), p_(problem) {}

  void run(int64_t tiny_bytes) {
    p_.graph = &graph_;
    p_.ends = static_cast<OpId>(graph_.ops.size());
    p_.backward_begins = p_.ends;
    for (OpId i = p_.ends; i-- > 0;)
      if (graph_.ops[static_cast<size_t>(i)].backward) p_.backward_begins = i;
    add_items(tiny_bytes);
    add_needs();
    add_fixed();
  }

 private:
  void add_items(int64_t tiny_bytes) {
    for (const graph::Value& value : graph_.values) {
      Problem::Item item;
      item.bytes = value.bytes;
      item.producer = value.producer;
      item.first = first_place(value);
      item.death = value.death;
      item.movable = value.evictable && value.bytes > 0 && value.bytes >= tiny_bytes;
      item.overwrites = value.overwrites != graph::kNone;
      p_.items.push_back(item);
    }
    for (const graph::Value& value : graph_.values)
      if (value.overwrites != graph::kNone) p_.items[static_cast<size_t>(value.overwrites)].overwritten = true;
    for (Problem::Item& item : p_.items)
      if (item.death == p_.ends && !item.overwritten) item.death = p_.ends + 1;
  }

  void need(OpId place, ValueId id) {
    if (p_.item(id).movable) needs_.emplace_back(place, id);
  }

  void add_needs() {
    for (OpId i = 0; i < p_.ends; ++i) {
      for (const ValueId v : p_.op(i).inputs) need(i, v);
      int64_t made = 0;
      for (const ValueId v : p_.op(i).outputs) {
        const ValueId old = graph_.values[static_cast<size_t>(v)].overwrites;
        if (old == graph::kNone)
          made += p_.item(v).bytes;
        else
          need(i, old);
      }
      p_.made.push_back(made);
    }
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      const graph::Value& value = graph_.values[v];
      // a source takes over the storage in the gap before its place
      if (value.producer == graph::kNone && value.overwrites != graph::kNone) need(value.birth - 1, value.overwrites);
      if (p_.items[v].death > p_.ends) need(p_.ends, static_cast<ValueId>(v));
    }
    std::sort(needs_.begin(), needs_.end());
    needs_.erase(std::unique(needs_.begin(), needs_.end()), needs_.end());
    p_.needs = Rows(static_cast<size_t>(p_.ends) + 1, needs_);
    for (auto& [place, id] : needs_) std::swap(place, id);
    p_.reads = Rows(graph_.values.size(), needs_);
  }

  void add_range(int32_t from, int32_t to, int64_t bytes) {
    to = std::min(to, p_.slots() - 1);
    if (from > to) return;
    change_[static_cast<size_t>(from)] += bytes;
    change_[static_cast<size_t>(to) + 1] -= bytes;
  }

  void add_fixed() {
    change_.assign(static_cast<size_t>(p_.slots()) + 1, 0);
    for (size_t v = 0; v < p_.items.size(); ++v) {
      const Problem::Item& item = p_.items[v];
      const int32_t last = item.overwritten ? 2 * item.death - 1 : 2 * item.death;
      if (!item.movable) {
        add_range(2 * item.first, last, item.bytes);
        continue;
      }
      add_range(2 * item.first, 2 * item.first, item.bytes);
      for (const OpId place : p_.reads[static_cast<ValueId>(v)])
        add_range(2 * place + 1, std::min(2 * place + 2, last), item.bytes);
    }
    p_.fixed.resize(static_cast<size_t>(p_.slots()));
    int64_t sum = 0;
    for (size_t s = 0; s < p_.fixed.size(); ++s) {
      sum += change_[s];
      const size_t place = s / 2;
      const bool at_end = place == graph_.ops.size();
      const int64_t gap = at_end ? graph_.end_gap : graph_.ops[place].gap;
      const int64_t outside = at_end ? graph_.end_outside : graph_.ops[place].outside;
      p_.fixed[s] = sum + (s % 2 == 0 ? gap : outside);
    }
  }

  const graph::Graph& graph_;
  Problem& p_;
  std::vector<std::pair<int32_t, int32_t>> needs_;
  std::vector<int64_t> change_;
};

}  // namespace

Problem::Problem(const graph::Graph& graph_in, int64_t tiny_bytes) : graph(&graph_in) {
  Maker(graph_in, *this).run(tiny_bytes);
}

}  // namespace refrain::plan
