#include "budget/eviction_queue.h"

#include <cmath>
#include <vector>

#include "tape/step_history.h"

namespace refrain::budget {
namespace {

constexpr double kNeverUsed = 1e15;  ///< as a distance in operators

bool looks_at_cost(EvictionHeuristic heuristic) {
  return heuristic == EvictionHeuristic::kHDtr || heuristic == EvictionHeuristic::kMsps;
}

double rate(const tape::Value& value) {
  return static_cast<double>(value.cost_ns + 1) / static_cast<double>(value.nbytes);
}

}  // namespace

void EvictionQueue::set_up(EvictionHeuristic heuristic, Bytes min_bytes) {
  if (heuristic != heuristic_ || min_bytes != min_bytes_) clear();
  heuristic_ = heuristic;
  min_bytes_ = min_bytes;
}

void EvictionQueue::insert(tape::TapeLock& lock, tape::Value& value, int64_t cost_ns) {
  value.cost_ns = cost_ns;
  value.rate_level = looks_at_cost(heuristic_) ? static_cast<int16_t>(std::lround(4.0 * std::log2(rate(value)))) : int16_t{0};
  value.knows_next_use = false;
  switch (heuristic_) {
    case EvictionHeuristic::kLru: value.order = value.last_use; break;
    case EvictionHeuristic::kLargest: value.order = ~static_cast<uint64_t>(value.nbytes); break;
    case EvictionHeuristic::kMsps: value.order = static_cast<uint64_t>(rate(value) * 1e6); break;
    case EvictionHeuristic::kHDtr: {
      const auto distance = tape::next_use_distance(lock, value);
      value.knows_next_use = distance != tape::StepHistory::kUnknown;
      value.order = !value.knows_next_use                        ? value.last_use
                    : distance == tape::StepHistory::kNever ? 0
                                                                  : ~(now_.position + distance);
    }
  }
  value.queued = true;
  auto& level = levels_[value.rate_level];
  order_of(level, value).insert({value.order, value.producer->seq, &value, rate(value)});
}

void EvictionQueue::remove(tape::Value& value) {
  if (!std::exchange(value.queued, false)) return;
  const auto level = levels_.find(value.rate_level);
  // the producer may be gone by now, and with it the number that the entry was filed under
  auto& order = order_of(level->second, value);
  for (auto entry = order.lower_bound({value.order, 0, nullptr, 0.0}); entry != order.end() && entry->order == value.order; ++entry) {
    if (entry->value != &value) continue;
    order.erase(entry);
    break;
  }
  if (level->second.empty()) levels_.erase(level);
}

void EvictionQueue::clear() {
  for (auto& [number, level] : levels_)
    for (auto* order : {&level.by_next_use, &level.by_last_use})
      for (const auto& entry : *order) entry.value->queued = false;
  levels_.clear();
}

void EvictionQueue::fill(tape::TapeLock& lock, const tape::Region& region) {
  clear();
  now_ = tape::now(lock);
  for (auto* value : region.values)
    if (static_cast<Bytes>(value->nbytes) >= min_bytes_ && value->nbytes > 0 && tape::is_evictable(*value))
      insert(lock, *value, value->producer->forward_ns);
  take_touched(lock);
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
    else if (tape::is_evictable(*value))
      insert(lock, *value, value->producer->forward_ns);
  }
  touched.clear();
  for (auto* value : locked) tape::touch(lock, value);
}

double EvictionQueue::score(const Entry& entry, bool knows_next_use) const {
  switch (heuristic_) {
    case EvictionHeuristic::kLru:
    case EvictionHeuristic::kLargest: return static_cast<double>(entry.order);
    case EvictionHeuristic::kMsps: return entry.rate;
    case EvictionHeuristic::kHDtr: break;
  }
  double distance = static_cast<double>(now_.seq - entry.order) + 1.0;
  if (knows_next_use) {
    const auto at = ~entry.order;
    distance = entry.order == 0 ? kNeverUsed : at > now_.position ? static_cast<double>(at - now_.position) : 1.0;
  }
  return entry.rate / distance;
}

tape::Value* EvictionQueue::best() const {
  tape::Value* found = nullptr;
  double least = 0.0;
  const auto look_at = [&](const Order& order, bool knows_next_use) {
    if (order.empty()) return;
    const auto& first = *order.begin();
    const double its = score(first, knows_next_use);
    if (found && its >= least) return;
    found = first.value;
    least = its;
  };
  for (const auto& [number, level] : levels_) {
    look_at(level.by_next_use, true);
    look_at(level.by_last_use, false);
  }
  return found;
}

tape::Value* EvictionQueue::pop(tape::TapeLock& lock) {
  while (auto* value = best()) {
    remove(*value);
    if (!tape::is_evictable(*value)) {
      if (value->locks > 0) tape::touch(lock, value);
      continue;
    }
    if (!looks_at_cost(heuristic_) || value->judged == decision_) return value;
    value->judged = decision_;
    insert(lock, *value, tape::recompute_ns(lock, *value));
  }
  return nullptr;
}

}  // namespace refrain::budget
