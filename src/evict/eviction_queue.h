#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "evict/evict.h"
#include "refrain/memory_cap.h"

namespace refrain::budget {

/// Evictable values in the order of a heuristic, found without scoring all of them.
///
/// A score changes with time and with what else is evicted, so no order by score lasts. What lasts is the order by next
/// use, or last use where the next is unknown, among values of similar cost per byte. So values are in *levels* of cost
/// per byte, at most a factor of 1.5 apart, each with two heaps; the best value overall is the best of the first of
/// each. Its cost is recomputed before it is taken, if more than a few evictions happened since: if it grew, the value
/// moves to its new level. A value removed from the middle of a heap leaves a dead entry, until that is first or half
/// of the heap is dead.
/// Threads: under the tape's lock. Cost: logarithmic for each value used since the last decision, and for each decision.
class EvictionQueue final : public tape::Candidates {
 public:
  EvictionQueue();

  /// Sets the heuristic and the size below which values are ignored. Other ones than before empty the queue.
  void set_up(EvictionHeuristic heuristic, Bytes min_bytes);

  /// Adds all values of `region`.
  void fill(tape::TapeLock& lock, const tape::Region& region);
  /// Reorders the queue after the end of a step.
  void renew(tape::TapeLock& lock);
  /// Adds values that were made or used since.
  void take_touched(tape::TapeLock& lock);
  /// Begins a decision.
  void begin(tape::TapeLock& lock);
  /// Removes and returns the best value; null if none is left.
  tape::Value* pop(tape::TapeLock& lock);
  void remove(tape::Value& value) override;
  void clear() override;

 private:
  /// A value of the queue.
  struct Member {
    tape::Value* value = nullptr;  ///< null while this number is free
    uint32_t heap = 0;
    uint64_t judged = 0;  ///< `Now::changes` when its cost was computed, or `kNever`
  };
  struct Entry {
    uint64_t order;  ///< least first
    uint64_t seq;    ///< then the one made first, so that equal runs decide equally
    double rate;     ///< ns for each byte
    uint32_t member, stamp;
    bool operator>(const Entry& other) const { return order != other.order ? order > other.order : seq > other.seq; }
  };
  struct Heap {
    std::vector<Entry> entries;  ///< the first is alive
    size_t alive = 0;
  };
  static constexpr uint32_t kLevels = 256;

  /// Whether its cost is recent enough to decide by.
  bool is_judged(const Member& member) const;
  bool is_dead(const Entry& entry) const { return stamps_[entry.member] != entry.stamp; }
  template <typename Visit>
  void for_each_filled(Visit&& visit) const {
    for (uint32_t word = 0; word < filled_.size(); ++word)
      for (auto bits = filled_[word]; bits != 0; bits &= bits - 1)
        visit(64 * word + static_cast<uint32_t>(std::countr_zero(bits)));
  }
  /// Adds `value` if it is evictable, with a cost still to be computed.
  void enter(tape::TapeLock& lock, tape::Value& value);
  void insert(tape::TapeLock& lock, tape::Value& value, int64_t cost_ns, uint64_t judged);
  /// Frees the number of a value that is no longer in the queue, and marks its entry dead.
  void give_back(uint32_t member);
  double score(const Entry& first, bool knows_next_use) const;
  /// Number of a heap, or -1.
  int best() const;
  /// Updates the score of a heap whose first entry changed.
  void note_first(uint32_t heap);

  std::vector<Heap> heaps_;                          ///< two a level: by next use, by last use
  std::vector<double> scores_;                       ///< of the first of each heap with entries, in this decision
  std::array<uint64_t, 2 * kLevels / 64> filled_{};  ///< bits: heaps with entries
  std::vector<Member> members_;                      ///< number 0 is unused
  std::vector<uint32_t> stamps_;                     ///< of each member: entries with another one are dead
  std::vector<uint32_t> free_members_;
  EvictionHeuristic heuristic_ = EvictionHeuristic::kHDtr;
  Bytes min_bytes_ = 0;
  tape::Now now_{};
};

}  // namespace refrain::budget
