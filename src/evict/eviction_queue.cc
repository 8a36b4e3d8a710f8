#include "evict/eviction_queue.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "evict/step_history.h"

namespace refrain::budget {
namespace {

constexpr double kNeverUsed = 1e15;  ///< as a distance in operators
constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kSmallShare = 64;  ///< a cost stays valid while fewer than one in so many evicted values changed

bool looks_at_cost(EvictionHeuristic heuristic) {
  return heuristic == EvictionHeuristic::kHDtr || heuristic == EvictionHeuristic::kMsps;
}

// Two levels to each doubling of the rate: its exponent and the first bit behind it.
uint32_t level_of(double rate, uint32_t levels) {
  constexpr uint64_t kLeastExponent = 1023 - 48;  // 2^-48 ns for a byte
  const uint64_t level = std::bit_cast<uint64_t>(rate) >> 51;
  return static_cast<uint32_t>(std::clamp<uint64_t>(level, 2 * kLeastExponent, 2 * kLeastExponent + levels - 1) -
                               2 * kLeastExponent);
}

}  // namespace

EvictionQueue::EvictionQueue() : heaps_(2 * kLevels), scores_(2 * kLevels), members_(1), stamps_(1) {}

void EvictionQueue::set_up(EvictionHeuristic heuristic, Bytes min_bytes) {
  if (heuristic != heuristic_ || min_bytes != min_bytes_) clear();
  heuristic_ = heuristic;
  min_bytes_ = min_bytes;
}

void EvictionQueue::enter(tape::TapeLock& lock, tape::Value& value) {
  if (static_cast<Bytes>(value.nbytes) >= min_bytes_ && value.nbytes > 0 && tape::is_evictable(value))
    insert(lock, value, value.producer->forward_ns, kNever);
}

void EvictionQueue::give_back(uint32_t number) {
  auto& value = members_[number].value;
  std::exchange(value, nullptr)->queued = 0;
  ++stamps_[number];
  free_members_.push_back(number);
}

void EvictionQueue::insert(tape::TapeLock& lock, tape::Value& value, int64_t cost_ns, uint64_t judged) {
  Entry entry{};
  entry.rate = static_cast<double>(cost_ns + 1) / static_cast<double>(value.nbytes);
  entry.seq = value.producer->seq << 16 | value.out;
  bool knows_next_use = false;
  switch (heuristic_) {
    case EvictionHeuristic::kLru:
      entry.order = value.last_use;
      break;
    case EvictionHeuristic::kLargest:
      entry.order = ~static_cast<uint64_t>(value.nbytes);
      break;
    case EvictionHeuristic::kMsps:
      entry.order = static_cast<uint64_t>(entry.rate * 1e6);
      break;
    case EvictionHeuristic::kHDtr: {
      const auto distance = tape::next_use_distance(lock, value);
      knows_next_use = distance != tape::StepHistory::kUnknown;
      entry.order = !knows_next_use                         ? value.last_use
                    : distance == tape::StepHistory::kNever ? 0
                                                            : ~(now_.position + distance);
    }
  }
  const uint32_t level = looks_at_cost(heuristic_) ? level_of(entry.rate, kLevels) : 0;
  if (free_members_.empty()) {
    value.queued = static_cast<uint32_t>(members_.size());
    members_.emplace_back();
    stamps_.push_back(0);
  } else {
    value.queued = free_members_.back();
    free_members_.pop_back();
  }
  auto& member = members_[value.queued];
  member.value = &value;
  member.heap = 2 * level + (knows_next_use ? 0 : 1);
  member.judged = judged;
  entry.member = value.queued;
  entry.stamp = stamps_[value.queued];
  auto& heap = heaps_[member.heap];
  heap.entries.push_back(entry);
  std::push_heap(heap.entries.begin(), heap.entries.end(), std::greater<>());
  ++heap.alive;
  note_first(member.heap);
}

void EvictionQueue::remove(tape::Value& value) {
  if (value.queued == 0) return;
  const auto heap = members_[value.queued].heap;
  give_back(value.queued);
  auto& [entries, alive] = heaps_[heap];
  --alive;
  if (entries.size() > 2 * alive + 64) {
    std::erase_if(entries, [&](const Entry& entry) { return is_dead(entry); });
    std::make_heap(entries.begin(), entries.end(), std::greater<>());
  }
  while (!entries.empty() && is_dead(entries.front())) {
    std::pop_heap(entries.begin(), entries.end(), std::greater<>());
    entries.pop_back();
  }
  note_first(heap);
}

bool EvictionQueue::is_judged(const Member& member) const {
  return !looks_at_cost(heuristic_) ||
         (member.judged != kNever && (now_.changes - member.judged) * kSmallShare <= now_.evicted);
}

void EvictionQueue::note_first(uint32_t heap) {
  const auto& entries = heaps_[heap].entries;
  const auto bit = uint64_t{1} << (heap % 64);
  if (entries.empty()) {
    filled_[heap / 64] &= ~bit;
    return;
  }
  filled_[heap / 64] |= bit;
  scores_[heap] = score(entries.front(), heap % 2 == 0);
}

void EvictionQueue::begin(tape::TapeLock& lock) {
  now_ = tape::now(lock);
  for_each_filled([&](uint32_t heap) { note_first(heap); });
}

void EvictionQueue::clear() {
  for (uint32_t number = 1; number < members_.size(); ++number)
    if (members_[number].value) give_back(number);
  for_each_filled([&](uint32_t heap) { heaps_[heap] = {}; });
  filled_ = {};
}

void EvictionQueue::fill(tape::TapeLock& lock, const tape::Region& region) {
  clear();
  now_ = tape::now(lock);
  for (auto* value : region.values) enter(lock, *value);
  take_touched(lock);
}

void EvictionQueue::renew(tape::TapeLock& lock) {
  std::vector<tape::Value*> values;
  for (const auto& member : members_)
    if (member.value) values.push_back(member.value);
  clear();
  now_ = tape::now(lock);
  for (auto* value : values) enter(lock, *value);
}

void EvictionQueue::take_touched(tape::TapeLock& lock) {
  auto& touched = lock.tape().touched;
  std::vector<tape::Value*> locked;
  now_ = tape::now(lock);
  for (auto* value : touched) {
    if (!value) continue;
    value->touched = false;
    remove(*value);
    if (static_cast<Bytes>(value->nbytes) < min_bytes_ || value->nbytes == 0) continue;
    if (value->locks > 0)
      locked.push_back(value);
    else
      enter(lock, *value);
  }
  touched.clear();
  for (auto* value : locked) tape::touch(lock, value);
}

double EvictionQueue::score(const Entry& first, bool knows_next_use) const {
  switch (heuristic_) {
    case EvictionHeuristic::kLru:
    case EvictionHeuristic::kLargest:
      return static_cast<double>(first.order);
    case EvictionHeuristic::kMsps:
      return first.rate;
    case EvictionHeuristic::kHDtr:
      break;
  }
  double distance = static_cast<double>(now_.seq - first.order) + 1.0;
  if (knows_next_use) {
    const auto at = ~first.order;
    distance = first.order == 0 ? kNeverUsed : at > now_.position ? static_cast<double>(at - now_.position) : 1.0;
  }
  return first.rate / distance;
}

int EvictionQueue::best() const {
  int found = -1;
  double least = 0.0;
  for_each_filled([&](uint32_t heap) {
    if (found >= 0 && scores_[heap] >= least) return;
    found = static_cast<int>(heap);
    least = scores_[heap];
  });
  return found;
}

tape::Value* EvictionQueue::pop(tape::TapeLock& lock) {
  for (int heap = best(); heap >= 0; heap = best()) {
    const auto& member = members_[heaps_[static_cast<size_t>(heap)].entries.front().member];
    auto* const value = member.value;
    const bool cost_is_known = is_judged(member);
    remove(*value);
    if (!tape::is_evictable(*value)) {
      if (value->locks > 0) tape::touch(lock, value);
      continue;
    }
    if (cost_is_known) return value;
    insert(lock, *value, tape::recompute_ns(lock, *value), now_.changes);
  }
  return nullptr;
}

}  // namespace refrain::budget
