#include "tape/region_end.h"

namespace refrain::tape {
namespace {

bool is_there(const Value& value) {
  return value.is_in_store() || (!value.is_overwritten() && static_cast<bool>(resident(value)));
}

// Marks with `lock.tape().plan_number` the values that operators of regions outside still need recomputed: overwritten
// ones, bounds (see `needs_hold`), and their ancestors without bytes.
void mark_replayed_by_others(TapeLock& lock, const Region* region) {
  const uint64_t number = ++lock.tape().plan_number;
  std::vector<const Region*> regions{region};
  std::vector<Value*> todo;
  const auto mark = [&](Value* value) {
    if (value->mark == number) return;
    value->mark = number;
    todo.push_back(value);
  };
  for (size_t i = 0; i < regions.size(); ++i) {
    regions.insert(regions.end(), regions[i]->children.begin(), regions[i]->children.end());
    for (auto* value : regions[i]->values) {
      const bool is_bound = value->producer && value->producer->traits->cast;  // held by nobody
      if (value->op_refs > 0 && (value->replaced || is_bound)) mark(value);
    }
  }
  while (!todo.empty()) {
    const auto* op = todo.back()->producer;
    todo.pop_back();
    if (!op) continue;
    for (const auto& ref : op->refs_in)
      if (ref.value && ref.value->producer && !is_there(*ref.value)) mark(ref.value);
  }
}

// An operator of this region that others still need may refer to a new leaf, as a bound and without a hold: nothing
// recomputes it. Under a cap the leaf may have no hold at all, but its bytes are there.
void hold_new_leaves(TapeLock& lock, const Region* region) {
  const uint64_t number = ++lock.tape().plan_number;
  for (auto* value : region->values) {
    auto* const op = value->producer;
    if (!op || op->mark == number) continue;  // an operator may have thousands of results
    op->mark = number;
    for (auto& ref : op->refs_in) {
      if (!ref.value || ref.holds || !ref.value->is_leaf()) continue;
      if (ref.value->holds == 0 && !is_there(*ref.value)) continue;
      ref.holds = true;
      hold(lock, ref.value);
    }
  }
}

// Once no slot is left under the outermost region, values that others hold become leaves, so that the operators behind
// them die, and no value lives on only because its storage does. Under a cap all unmarked values do, as a region's
// value is a source for the cap's operators without being held.
void end_values(TapeLock& lock, Region* region, bool in_cap, uint64_t marked) {
  for (auto* value : region->values) {
    // Where it was overwritten, bytes that a replay gave it do not serve operators whose tensor has the newer ones.
    const bool is_held = value->holds > 0 && (value->is_in_store() || (value->held && !value->replaced));
    if ((is_held || (in_cap && value->mark != marked)) && value->producer && !value->discard) {
      value->producer->outs[value->out].value = nullptr;
      lock.release(std::exchange(value->producer, nullptr));
    }
    disown(lock, value);
  }
  hold_new_leaves(lock, region);
  release_marked(lock, region);
  release_bound_holds(lock, region);
  for (auto& bound : std::exchange(region->bounds, {})) lock.release(bound.value);
  for (auto* child : region->children) end_values(lock, child, in_cap, marked);
  if (!region->children.empty()) hold_new_leaves(lock, region);  // leaves of the children
}

}  // namespace

void close_if_done(TapeLock& lock, Region* region) {
  if (region->top->active || region->top->live_slots > 0) return;
  const bool in_cap = lock.tape().cap.load() != nullptr;
  if (in_cap) mark_replayed_by_others(lock, region);
  end_values(lock, region, in_cap, lock.tape().plan_number);
}

void slot_added(TapeLock& lock, Region* region) {
  for (auto* at = region; at; at = at->parent) ++at->live_slots;
  ++lock.tape().stats.live_slots;
  lock.tape().pending_slots.fetch_add(1, std::memory_order_relaxed);
}

void slot_removed(TapeLock& lock, Region* region) {
  for (auto* at = region; at; at = at->parent) {
    if (--at->live_slots == 0) close_if_done(lock, at);
  }
  --lock.tape().stats.live_slots;
  lock.tape().pending_slots.fetch_sub(1, std::memory_order_relaxed);
}

void release_bound_holds(TapeLock& lock, Region* region) {
  for (auto& bound : region->bounds)
    if (std::exchange(bound.holds, false)) unhold(lock, bound.value);
}

}  // namespace refrain::tape
