#include "evict/securing.h"

#include <algorithm>
#include <utility>

#include "evict/cap_state.h"

namespace refrain::tape {
namespace {

// Whether a source still has the bytes that `ref` read.
bool is_readable(const Value& source, const ArgRef& ref) {
  if (source.unknown || source.gradient || source.writers > 0 || source.exposed) return false;
  if (ref.version_moved() && !source.private_copy) return false;
  return static_cast<bool>(resident(source));
}

// Finds `op` and the operators behind it that are not secured yet. @return whether all of them can be replayed.
bool find_unsecured(TapeLock& lock, Op* op, c10::SmallVectorImpl<Op*>& found) {
  const uint64_t number = ++lock.tape().plan_number;
  bool is_whole = true;
  found.assign(1, op);
  op->mark = number;
  for (size_t i = 0; i < found.size(); ++i) {
    for (const auto& ref : found[i]->refs_in) {
      if (!ref.value) continue;
      if (is_source(*ref.value)) {
        is_whole &= is_readable(*ref.value, ref);
        continue;
      }
      auto* producer = ref.value->producer;
      is_whole &= !producer->lost;
      if (producer->lost || producer->secured > 0 || producer->mark == number) continue;
      producer->mark = number;
      found.push_back(producer);
    }
  }
  return is_whole;
}

}  // namespace

bool is_earlier(const Op* a, const Op* b) { return a->seq < b->seq; }

bool is_source(const Value& value) { return !value.producer || !value.region || !value.region->cap; }

bool is_resident(const Value& value) {
  return !value.is_evicted() && !value.is_overwritten() && !value.storage.expired();
}

bool seems_resident(const Value& value) {
  return !value.is_evicted() && !value.is_overwritten() && value.key && (value.tagged || !value.storage.expired());
}

void turn_into_source(TapeLock& lock, Value* value) {
  if (!value->producer || value->producer->secured > 0) return;
  value->producer->outs[value->out].value = nullptr;
  lock.release(std::exchange(value->producer, nullptr));
  if (!value->gradient) disown(lock, value);
}

void mark_lost(TapeLock& lock, c10::ArrayRef<Op*> ops) {
  for (auto* op : ops) {
    if (op->secured > 0) continue;
    for (const auto& ref : op->refs_in)
      op->lost |= ref.value && (is_source(*ref.value) ? !is_readable(*ref.value, ref) : ref.value->producer->lost);
    if (!op->lost) continue;
    for (auto& out : op->outs)
      if (out.value && is_resident(*out.value)) turn_into_source(lock, out.value);
  }
}

bool secure(TapeLock& lock, Op* op) {
  if (op->secured == 0) {
    c10::SmallVector<Op*, 16> found;
    if (!op->lost && !find_unsecured(lock, op, found)) {
      // values between the loss and `op` may still be resident, and serve as sources
      std::sort(found.begin(), found.end(), is_earlier);
      ++op->refs;
      mark_lost(lock, found);
      const bool is_lost = op->lost || op->refs == 1;
      lock.release(op);
      if (is_lost) return false;
      if (!find_unsecured(lock, op, found)) return false;
    }
    if (op->lost) return false;
    for (auto* each : found) {
      for (const auto& ref : each->refs_in) {
        if (!ref.value) continue;
        if (is_source(*ref.value)) {
          hold(lock, ref.value);
          ++ref.value->needed;
        } else {
          ++ref.value->producer->secured;
        }
      }
    }
  }
  ++op->secured;
  return true;
}

void release_op(TapeLock& lock, Op* op) {
  c10::SmallVector<Op*, 16> todo{op};
  while (!todo.empty()) {
    auto* at = todo.back();
    todo.pop_back();
    if (--at->secured > 0) continue;
    for (const auto& ref : at->refs_in) {
      if (!ref.value) continue;
      if (is_source(*ref.value)) {
        --ref.value->needed;
        unhold(lock, ref.value);
      } else {
        todo.push_back(ref.value->producer);
      }
    }
  }
}

void forget_recorded(TapeLock& lock) {
  for (auto* value : cap().region->values) {
    if (value->is_evicted()) continue;
    turn_into_source(lock, value);
    disown(lock, value);
  }
  lock.tape().map.for_each([&](Value* value) {
    if (value->gradient && !value->region) disown(lock, value);
  });
  if (auto* candidates = std::exchange(lock.tape().candidates, nullptr)) candidates->clear();
  for (auto* value : std::exchange(lock.tape().touched, {}))
    if (value) value->touched = false;
}

}  // namespace refrain::tape
