#include "graph/random_graph.h"

#include <algorithm>
#include <random>

#include "graph/builder.h"

namespace refrain::graph {
namespace {

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}

  /// 0 to before `end`.
  int64_t below(int64_t end) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(end)); }
  bool roll(double probability) { return static_cast<double>(random_() >> 11) * 0x1p-53 < probability; }
  template <typename Items>
  const auto& pick(const Items& items) {
    return items[static_cast<size_t>(below(static_cast<int64_t>(items.size())))];
  }

 private:
  std::mt19937_64 random_;
};

class Maker {
 public:
  Maker(uint64_t seed, const RandomGraphOptions& options) : dice_(seed), options_(options) {}

  Graph run() {
    for (int64_t i = 1 + dice_.below(options_.sources); i > 0; --i) add_source();
    const int64_t forward = 1 + dice_.below(options_.forward_ops);
    for (int64_t i = 0; i < forward; ++i) add_op(false);
    const std::vector<ValueId> saved = current_;
    if (options_.backward)
      for (int64_t i = 1 + forward + dice_.below(forward); i > 0; --i) {
        recall(saved);
        add_op(true);
      }
    return finish();
  }

 private:
  int64_t bytes() { return dice_.roll(0.1) ? 0 : 1 + dice_.below(options_.most_bytes); }

  void add_source() { current_.push_back(builder_.source(bytes())); }

  /// Reads a value of forward, late ones first.
  void recall(const std::vector<ValueId>& saved) {
    recalled_ = kNone;
    const ValueId id = saved[saved.size() - 1 - static_cast<size_t>(turn_++) % saved.size()];
    if (!builder_.is_overwritten(id) && dice_.roll(0.7)) recalled_ = id;
  }

  void add_op(bool backward) {
    std::vector<ValueId> inputs;
    if (recalled_ != kNone) inputs.push_back(recalled_);
    for (int64_t i = dice_.below(3) + (dice_.roll(0.95) ? 1 : 0); i > 0; --i) {
      const ValueId id = recent();
      if (id != kNone) inputs.push_back(id);
    }
    Op& op = builder_.op(backward ? "backward" : "forward", inputs, dice_.below(options_.most_ns + 1));
    op.backward = backward;
    op.random = dice_.roll(0.05);
    op.replayable = !dice_.roll(options_.not_replayable);
    if (options_.outside)
      op.workspace = dice_.roll(0.3) ? dice_.below(options_.most_bytes) - options_.most_bytes / 8 : 0;
    if (dice_.roll(0.05)) return;
    const bool are_sources = !op.replayable && dice_.roll(0.5);  // what cannot be recomputed
    if (!inputs.empty() && dice_.roll(options_.in_place)) overwrite(dice_.roll(options_.no_read), are_sources);
    const int64_t outputs = dice_.roll(0.3) ? dice_.below(3) : 1;
    for (int64_t i = 0; i < outputs; ++i) are_sources ? add_source() : made(builder_.output(bytes()));
  }

  /// Mostly one of the last values.
  ValueId recent() {
    for (int tries = 0; tries < 8; ++tries) {
      const auto size = static_cast<int64_t>(current_.size());
      const int64_t back = dice_.roll(0.7) ? dice_.below(std::min<int64_t>(size, 3)) : dice_.below(size);
      const ValueId id = current_[static_cast<size_t>(size - 1 - back)];
      if (!builder_.is_overwritten(id)) return id;
    }
    return kNone;
  }

  /// An input, or anything that it does not read.
  void overwrite(bool unread, bool as_source) {
    const ValueId old = unread ? recent() : dice_.pick(builder_.last().inputs);
    const auto& inputs = builder_.last().inputs;
    const bool reads_old = std::find(inputs.begin(), inputs.end(), old) != inputs.end();
    if (old == kNone || reads_old == unread || builder_.is_overwritten(old)) return;
    if (as_source)
      current_.push_back(builder_.source_over(old));
    else
      made(builder_.overwrite(old));
  }

  void made(ValueId id) {
    if (!builder_.last().replayable || dice_.roll(options_.not_evictable)) builder_.value(id).evictable = false;
    if (dice_.roll(options_.outlives)) builder_.keep_to_end(id);
    if (!dice_.roll(0.1)) current_.push_back(id);
  }

  Graph finish() {
    Graph graph = builder_.finish();
    const auto end = static_cast<OpId>(graph.ops.size());
    std::vector<OpId> last_place(graph.values.size(), 0);
    for (size_t i = 0; i < graph.ops.size(); ++i)
      for (const ValueId v : graph.ops[i].inputs) last_place[static_cast<size_t>(v)] = static_cast<OpId>(i) + 1;
    for (size_t v = 0; v < graph.values.size(); ++v) {
      Value& value = graph.values[v];
      if (builder_.is_overwritten(static_cast<ValueId>(v))) continue;
      if (value.producer == kNone && dice_.roll(0.3)) value.death = std::max(value.birth, last_place[v]);
      if (value.death < end && dice_.roll(options_.late_death))
        value.death += static_cast<OpId>(dice_.below(end - value.death + 1));
    }
    if (options_.outside) add_outside(graph);
    return graph;
  }

  void add_outside(Graph& graph) {
    int64_t outside = bytes();
    const auto gap = [&] { return outside + (dice_.roll(0.3) ? bytes() : 0); };
    for (Op& op : graph.ops) {
      if (dice_.roll(0.3)) outside = bytes();
      op.outside = outside;
      op.gap = gap();
    }
    graph.end_outside = outside;
    graph.end_gap = gap();
  }

  Dice dice_;
  const RandomGraphOptions& options_;
  Builder builder_;
  std::vector<ValueId> current_;  // that operators may read, unless overwritten since
  int64_t turn_ = 0;
  ValueId recalled_ = kNone;
};

/// Tracks what is resident, by the rules of a schedule.
class Player {
 public:
  Player(const Graph& graph, uint64_t seed, double wild)
      : graph_(graph), dice_(seed), wild_(wild), there_(graph.values.size()), overwritten_(graph.values.size(), kNone) {
    for (size_t v = 0; v < graph.values.size(); ++v)
      if (graph.values[v].overwrites != kNone)
        overwritten_[static_cast<size_t>(graph.values[v].overwrites)] = static_cast<ValueId>(v);
    find_what_can_come_back();
  }

  Schedule run() {
    schedule_ = empty_schedule(graph_);
    for (place_ = 0; place_ <= static_cast<OpId>(graph_.ops.size()); ++place_) {
      begin_place();
      for (int64_t i = dice_.roll(0.6) ? dice_.below(4) : 0; i > 0; --i) act();
      restore_what_is_needed();
      if (place_ < static_cast<OpId>(graph_.ops.size()))
        for (const ValueId v : op(place_).outputs) come(v);
    }
    return std::move(schedule_);
  }

 private:
  const Op& op(OpId id) const { return graph_.ops[static_cast<size_t>(id)]; }
  const Value& value(ValueId id) const { return graph_.values[static_cast<size_t>(id)]; }
  char& there(ValueId id) { return there_[static_cast<size_t>(id)]; }
  bool at_end() const { return place_ == static_cast<OpId>(graph_.ops.size()); }
  bool is_alive(ValueId id) const {
    const bool stays = at_end() && value(id).death == place_ && overwritten_[static_cast<size_t>(id)] == kNone;
    return first_place(value(id)) <= place_ && (place_ < value(id).death || stays);
  }

  /// From sources that outlive the place, through operators that can be recomputed.
  void find_what_can_come_back() {
    const auto end = static_cast<OpId>(graph_.ops.size());
    for (size_t v = 0; v < there_.size(); ++v)
      can_come_back_.push_back(graph_.values[v].producer == kNone && graph_.values[v].death == end &&
                               overwritten_[v] == kNone);
    for (const Op& op : graph_.ops) {
      const bool can = op.replayable && std::all_of(op.inputs.begin(), op.inputs.end(),
                                                    [&](ValueId v) { return can_come_back_[static_cast<size_t>(v)]; });
      for (const ValueId v : op.outputs) can_come_back_[static_cast<size_t>(v)] = can;
    }
  }

  void come(ValueId id) {
    if (value(id).overwrites != kNone) there(value(id).overwrites) = false;
    there(id) = true;
  }

  void begin_place() {
    for (size_t v = 0; v < graph_.values.size(); ++v) {
      const auto id = static_cast<ValueId>(v);
      if (value(id).producer == kNone && value(id).birth == place_) come(id);
      if (value(id).death == place_ && !is_alive(id)) there(id) = false;
    }
  }

  void add(Action::Kind kind, int32_t id) { schedule_.places[static_cast<size_t>(place_)].push_back({kind, id}); }

  void act() {
    if (dice_.roll(wild_)) {
      add(static_cast<Action::Kind>(dice_.below(3)),
          static_cast<int32_t>(dice_.below(static_cast<int64_t>(there_.size()) + 2)) - 1);
    } else if (dice_.roll(0.7)) {
      drop(static_cast<ValueId>(dice_.below(static_cast<int64_t>(there_.size()))));
    } else if (place_ > 0) {
      recompute(static_cast<OpId>(dice_.below(place_)), true);
    }
  }

  void drop(ValueId id) {
    if (!there(id) || (is_alive(id) && !(value(id).evictable && can_come_back_[static_cast<size_t>(id)]))) return;
    add(Action::Kind::kDrop, id);
    there(id) = false;
  }

  void recompute(OpId id, bool may_consume) {
    if (!op(id).replayable) return;
    for (const ValueId v : op(id).inputs)
      if (!there(v)) return;
    const auto& outputs = op(id).outputs;
    const auto overwrites = [&](ValueId v) { return value(v).overwrites != kNone; };
    may_consume = may_consume && std::any_of(outputs.begin(), outputs.end(), overwrites);
    for (const ValueId v : outputs)
      may_consume = may_consume && (value(v).overwrites == kNone || there(value(v).overwrites));
    const bool in_place = may_consume && dice_.roll(0.5);
    add(in_place ? Action::Kind::kRecomputeInPlace : Action::Kind::kRecompute, id);
    for (const ValueId v : outputs) {
      if (in_place && value(v).overwrites != kNone) there(value(v).overwrites) = false;
      there(v) = true;
    }
  }

  /// Only values that can be recomputed were dropped.
  void restore(ValueId id) {
    if (there(id) || value(id).producer == kNone) return;
    for (const ValueId v : op(value(id).producer).inputs) restore(v);
    recompute(value(id).producer, false);
  }

  void restore_what_is_needed() {
    if (at_end()) {
      for (size_t v = 0; v < there_.size(); ++v)
        if (is_alive(static_cast<ValueId>(v))) restore(static_cast<ValueId>(v));
      return;
    }
    for (const ValueId v : op(place_).inputs) restore(v);
    for (const ValueId v : op(place_).outputs)
      if (value(v).overwrites != kNone) restore(value(v).overwrites);
    for (size_t v = 0; v < there_.size(); ++v) restore_for_source(static_cast<ValueId>(v));
  }

  /// A source that takes over a storage at the next place takes that of a resident value.
  void restore_for_source(ValueId id) {
    if (value(id).producer == kNone && value(id).birth == place_ + 1 && value(id).overwrites != kNone)
      restore(value(id).overwrites);
  }

  const Graph& graph_;
  Dice dice_;
  const double wild_;
  OpId place_ = 0;
  std::vector<char> there_, can_come_back_;
  std::vector<ValueId> overwritten_;  // by which value
  Schedule schedule_;
};

}  // namespace

Graph random_graph(uint64_t seed, const RandomGraphOptions& options) { return Maker(seed, options).run(); }

Schedule random_schedule(const Graph& graph, uint64_t seed, double wild) { return Player(graph, seed, wild).run(); }

}  // namespace refrain::graph
