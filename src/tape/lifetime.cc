#include "tape/lifetime.h"

#include <algorithm>

#include "tape/slots.h"

namespace refrain::tape {

void make_leaf(TapeLock& lock, Value* value) {
  if (!value->unknown) return;
  value->unknown = false;
  if (value->armed) disarm_alive(value);
  for (auto* slot = value->slots; slot; slot = slot->in_value.next) {
    if (slot->holds) continue;
    slot->holds = true;
    hold(lock, value);
  }
  disown(lock, value);
}

void overwritten(TapeLock& lock, Value* before, c10::Storage&& copy, Value* after, std::vector<Unsettled>& unsettled) {
  if (before->resized && before->is_leaf()) return lock.discard(std::move(copy));  // its bytes are filled in again
  auto* storage = before->key;
  if (before->armed && storage) disarm(before, storage);
  for (auto* slot = before->slots; slot; slot = slot->in_value.next)
    if (slot->filled && slot->filled.unsafeGetStorageImpl() == storage) lock.discard(std::move(slot->filled));
  retain(before);
  unmap_value(lock, before);
  before->note_overwritten();
  before->replaced = true;
  if (before->is_leaf() || (before->unknown && !after)) {
    before->unknown = false;
    if (before->private_copy || before->is_in_store() || before->exposed) {
      // The tape has bytes of its own, or a hash of them.
      lock.discard(std::move(copy));
    } else if (copy) {
      lock.discard(std::exchange(before->held, std::move(copy)));
      before->private_copy = true;
      ++lock.tape().stats.leaf_copies;
      lock.tape().stats.leaf_copy_bytes += static_cast<int64_t>(before->nbytes);
    } else {
      before->residency = Residency::kLost;
      lock.discard(std::move(before->held));
    }
  } else {
    if (before->unknown) before->residency = Residency::kLost;
    before->unknown = false;
    lock.discard(std::exchange(before->held, std::move(copy)));
    if (before->held) {
      before->private_copy = true;
      ++lock.tape().stats.leaf_copies;
      lock.tape().stats.leaf_copy_bytes += static_cast<int64_t>(before->nbytes);
    }
  }
  if (before->slots && !after && storage) {
    // The tape did not see what was written: the new bytes are a leaf.
    if (auto strong = before->storage.lock()) {
      after = lock.tape().values.make(c10::Storage(std::move(strong)));
      ++lock.tape().stats.live_values;
      map_value(lock, after, storage, false);
    }
  }
  if (after && (before->slots || after->producer)) {
    retain(before);
    retain(after);
    // Its tensor may die before the bump is known, and a slot that moves to it may have to hold it.
    const bool holds = before->slots != nullptr;
    if (holds) hold(lock, after);
    unsettled.push_back({before, after, holds});
  }
  lock.release(before);
}

namespace {

void add_bound(Region* region, Value* value) {
  const auto& bounds = region->bounds;
  const auto recent = bounds.end() - std::min<ptrdiff_t>(16, static_cast<ptrdiff_t>(bounds.size()));
  if (std::any_of(recent, bounds.end(), [&](const auto& bound) { return bound.value == value; })) return;
  retain(value);
  region->bounds.push_back({value, false});
}

}  // namespace

bool should_copy(TapeLock& lock, const Value& value, int32_t own_refs) {
  const bool from_outside = value.is_leaf() || (value.region && value.region->cap && value.producer);
  if (!from_outside || value.op_refs <= own_refs || value.is_lost() || value.is_in_store() || value.private_copy ||
      value.resized)
    return false;
  auto& tape = lock.tape();
  return tape.leaf_write_policy == LeafWritePolicy::kCopy &&
         tape.stats.leaf_copy_bytes + static_cast<int64_t>(value.nbytes) <= tape.max_leaf_copy_bytes;
}

bool needs_hold(TapeLock&, Value* value, Region* region) {
  if (region && region->cap) return false;
  if (value->region && value->region->cap) return !value->unknown;
  if (value->is_leaf() || value->saved) return true;
  if (value->unknown) return false;
  if (!region || !value->region) return true;  // of an `OffloadScope`: nothing is replayed for it
  if (value->region->top != region->top) {
    if (value->discard) {
      add_bound(region->top, value);
      return false;
    }
    const auto* producer = value->producer;
    const bool cast_of_leaf = producer->traits->cast && producer->refs_in.size() == 1 && producer->refs_in[0].value &&
                              producer->refs_in[0].value->is_leaf();
    return !cast_of_leaf;
  }
  // A bound of every region between this one and the one that encloses both.
  for (auto* at = region; at; at = at->parent) {
    auto* up = value->region;
    while (up && up != at) up = up->parent;
    if (up) break;
    add_bound(at, value);
  }
  return false;
}

void let_discard(Value* value) {
  if (std::exchange(value->discard, true)) return;
  Tape::get().discardable.fetch_add(1, std::memory_order_relaxed);
}

void keep_marked(TapeLock& lock, Value* value, Region* region) {
  if (value->saved || value->is_leaf()) return;
  value->saved = true;
  retain(value);
  hold(lock, value);
  region->marked.push_back(value);
}

}  // namespace refrain::tape
