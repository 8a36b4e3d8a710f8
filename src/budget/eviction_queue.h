#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>

#include "refrain/memory_cap.h"
#include "tape/evict.h"

namespace refrain::budget {

/// The values that may leave memory, in the order of a heuristic, without a look at all of them.
///
/// A score changes with time and with what else is evicted, so no order by score lasts. What lasts is the order by next use, or last use where the
/// next is unknown, among values that cost alike per byte. So values lie in *levels* of cost per byte, a factor of 2^(1/4) apart,
/// each in two orders; the best one overall is the best of the first of each. The cost of that one is looked at again before it is
/// taken: grown, it moves to its new level.
/// Threads: under the tape's lock. Cost: logarithmic for each value used since the last decision, and for each decision.
class EvictionQueue final : public tape::Candidates {
 public:
  /// Values of fewer than `min_bytes` are left out. Another heuristic or bound than before empties the queue.
  void set_up(EvictionHeuristic heuristic, Bytes min_bytes);

  /// Takes all that `region` has.
  void fill(tape::TapeLock& lock, const tape::Region& region);
  /// Takes in what was made or used since.
  void take_touched(tape::TapeLock& lock);
  /// A decision begins: costs are looked at once in each.
  void begin(tape::TapeLock& lock) { ++decision_, now_ = tape::now(lock); }
  /// Takes the best out of the queue; null if none is left.
  tape::Value* pop(tape::TapeLock& lock);
  void remove(tape::Value& value) override;
  void clear() override;

 private:
  struct Entry {
    uint64_t order;  ///< least first
    uint64_t seq;    ///< then the one recorded first, so that equal runs decide equally
    tape::Value* value;
    double rate;  ///< ns for each byte: kept here, as a look at one value in each level would wait for memory that many times
    bool operator<(const Entry& other) const { return std::tie(order, seq, value) < std::tie(other.order, other.seq, other.value); }
  };
  using Order = std::set<Entry>;
  struct Level {
    Order by_next_use, by_last_use;
    bool empty() const { return by_next_use.empty() && by_last_use.empty(); }
  };
  static Order& order_of(Level& level, const tape::Value& value) { return value.knows_next_use ? level.by_next_use : level.by_last_use; }

  void insert(tape::TapeLock& lock, tape::Value& value, int64_t cost_ns);
  double score(const Entry& entry, bool knows_next_use) const;
  tape::Value* best() const;

  std::map<int, Level> levels_;
  EvictionHeuristic heuristic_ = EvictionHeuristic::kHDtr;
  Bytes min_bytes_ = 0;
  uint64_t decision_ = 0;
  tape::Now now_{};
};

}  // namespace refrain::budget
