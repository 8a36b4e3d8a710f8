#include "tests/graph/reference_simulator.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>

namespace refrain::graph {
namespace {

struct Impossible {};

struct Event {
  int place = 0;
  bool in_recompute = false;
  int64_t bytes = 0;
};

class Heap {
 public:
  int allocate(int64_t bytes) {
    blocks_[next_] = bytes;
    return next_++;
  }
  void free(int block) { blocks_.erase(block); }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const auto& [block, bytes] : blocks_) sum += bytes;
    return sum;
  }

 private:
  std::map<int, int64_t> blocks_;
  int next_ = 0;
};

class Machine {
 public:
  Machine(const Graph& graph, const Schedule& schedule)
      : graph_(graph), schedule_(schedule), n_(static_cast<int>(graph.ops.size())) {}

  std::string place() const { return now_ < n_ ? "before operator " + std::to_string(now_) + " " : "at the end: "; }

  Simulation run() {
    if (static_cast<int>(schedule_.places.size()) != n_ + 1) throw Impossible{};
    for (now_ = 0; now_ <= n_; ++now_) {
      for (int v = 0; v < values(); ++v)
        if (graph_.values[v].producer == kNone && graph_.values[v].birth == now_) appear(v);
      note(heap_.bytes() + (now_ == n_ ? graph_.end_gap : graph_.ops[now_].gap), false);
      for (int v = 0; v < values(); ++v)
        if (graph_.values[v].death == now_ && !is_alive(v) && block_.count(v)) release(v);
      for (const Action& action : schedule_.places[now_]) act(action);
      result_.in_use.push_back(heap_.bytes() + outside());
      note(result_.in_use.back(), false);
      if (now_ < n_) run_op();
    }
    now_ = n_;
    for (int v = 0; v < values(); ++v)
      if (is_alive(v) && !block_.count(v)) throw Impossible{};
    summarize();
    return result_;
  }

 private:
  int values() const { return static_cast<int>(graph_.values.size()); }
  int64_t outside() const { return now_ == n_ ? graph_.end_outside : graph_.ops[now_].outside; }

  std::optional<int> heir(int v) const {
    for (int w = 0; w < values(); ++w)
      if (graph_.values[w].overwrites == v) return w;
    return std::nullopt;
  }

  /// In a plain run.
  bool is_alive(int v) const {
    const Value& value = graph_.values[v];
    const int from = value.producer == kNone ? value.birth : value.producer + 1;
    if (now_ < from) return false;
    if (now_ == n_ && value.death == n_) return !heir(v);
    return now_ < value.death;
  }

  void appear(int v) {
    const int old = graph_.values[v].overwrites;
    if (old == kNone) {
      block_[v] = heap_.allocate(graph_.values[v].bytes);
    } else {
      if (!block_.count(old)) throw Impossible{};
      block_[v] = block_[old];
      block_.erase(old);
    }
  }

  void release(int v) {
    heap_.free(block_.at(v));
    block_.erase(v);
  }

  void note(int64_t bytes, bool in_recompute) { events_.push_back({now_, in_recompute, bytes}); }

  void act(const Action& action) {
    if (action.kind == Action::Kind::kDrop) {
      if (!block_.count(action.id)) throw Impossible{};
      if (is_alive(action.id) && !graph_.values[action.id].evictable) throw Impossible{};
      release(action.id);
    } else {
      recompute(action.id, action.kind == Action::Kind::kRecomputeInPlace);
    }
  }

  void recompute(int id, bool in_place) {
    if (id < 0 || id >= now_ || !graph_.ops[id].replayable) throw Impossible{};
    const Op& op = graph_.ops[id];
    for (const int v : op.inputs)
      if (!block_.count(v)) throw Impossible{};
    std::map<int, int> made;  // value -> its new block
    for (const int v : op.outputs) {
      const int old = graph_.values[v].overwrites;
      if (old == kNone) continue;
      if (in_place) {
        if (!block_.count(old)) throw Impossible{};
        made[v] = block_[old];
        block_.erase(old);
      } else {
        made[v] = heap_.allocate(graph_.values[v].bytes);
      }
    }
    if (in_place && made.empty()) throw Impossible{};
    const int64_t start = heap_.bytes() + outside();
    note(start, true);
    for (const int v : op.outputs)
      if (!made.count(v)) made[v] = heap_.allocate(graph_.values[v].bytes);
    note(heap_.bytes() + outside() + op.workspace, true);
    for (const auto& [v, block] : made) {
      if (block_.count(v))
        heap_.free(block);
      else
        block_[v] = block;
    }
    note(heap_.bytes() + outside(), true);
    result_.added_ns += op.ns;
    ++result_.recomputed_ops;
  }

  void run_op() {
    const Op& op = graph_.ops[now_];
    for (const int v : op.inputs)
      if (!block_.count(v)) throw Impossible{};
    for (const int v : op.outputs) appear(v);
    note(heap_.bytes() + outside() + op.workspace, false);
  }

  void summarize() {
    result_.peaks.assign(n_ + 1, 0);
    for (const Event& event : events_) {
      result_.peaks[event.place] = std::max(result_.peaks[event.place], event.bytes);
      if (event.bytes <= result_.peak) continue;
      result_.peak = event.bytes;
      result_.peak_place = event.place;
      result_.peak_in_recompute = event.in_recompute;
    }
  }

  const Graph& graph_;
  const Schedule& schedule_;
  const int n_;
  int now_ = 0;
  Heap heap_;
  std::map<int, int> block_;  // of the values that are there
  std::vector<Event> events_;
  Simulation result_;
};

}  // namespace

Simulation reference_simulate(const Graph& graph, const Schedule& schedule) {
  Machine machine(graph, schedule);
  try {
    return machine.run();
  } catch (const Impossible&) {
    Simulation result;
    result.error = machine.place();
    return result;
  }
}

}  // namespace refrain::graph
