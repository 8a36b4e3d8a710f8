#include "evict/evict.h"

#include <algorithm>

#include "evict/cap_state.h"
#include "evict/rest.h"
#include "evict/securing.h"
#include "intercept/storage_barrier.h"
#include "memory/stack.h"
#include "tape/barrier.h"
#include "tape/step_listener.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

constexpr size_t kWorthHistory = 1024;  ///< bytes, from one step to the next

const char* const kNotThere =
    "[refrain::MemoryCap] data_ptr() of an evicted tensor; hold `PinScope pin(tensor)` first. Code that takes pointers "
    "(const_data_ptr, torch::save) needs the pin; operators on threads under the cap recompute the tensor without it. "
    "On a thread of your own open `CapThreadScope scope`, or pin before the thread reads.";

}  // namespace

void end_eviction(TapeLock& lock, Value* value) {
  auto& all = cap().evicted;
  all[value->evicted_index] = all.back();
  all[value->evicted_index]->evicted_index = value->evicted_index;
  all.pop_back();
  value->residency = Residency::kResident;
  ++cap().changes;
  cap().absent_bytes -= static_cast<int64_t>(value->nbytes);
  cap().classes.remove(*value);
  if (cap().classes.is_worn()) cap().classes.rebuild(all);
  release_op(lock, value->producer);
  lock.release(value);
}

bool is_evictable(const Value& value) {
  return value.producer && !value.fixed && !value.unknown && !value.gradient && !value.is_in_store() &&
         seems_resident(value) && value.locks == 0 && value.pins == 0 && value.holds == 0 && !value.slots;
}

bool evict(TapeLock& lock, Value* value) {
  auto storage = value->storage.lock();
  if (!storage || cap().closing || value->offloaded || value->version_moved()) return false;
  auto& data = storage->_mutable_data_ptr_no_checks();
  const bool was_armed = value->armed;
  if (was_armed) disarm(value, storage.get());
  if (has_barrier(storage.get()) || !is_tracked(data) || !secure(lock, value->producer)) {
    if (was_armed) arm(value, storage.get());
    value->fixed = true;
    return false;
  }
  (void)untag(value, storage.get());  // it is alive: the memory has not reported its death
  const auto device = data.device();
  auto bytes = std::move(data);
  retain(value);
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, value, &memory_died, device));
  forbid_access(storage.get(), kNotThere);
  value->residency = Residency::kEvicted;
  ++cap().changes;
  value->demand = cap().demand;
  cap().absent_bytes += static_cast<int64_t>(value->nbytes);
  value->evicted_index = static_cast<uint32_t>(cap().evicted.size());
  cap().evicted.push_back(value);
  cap().classes.add(*value);
  lock.discard(std::move(bytes));
  ++cap().counters.evictions;
  cap().counters.evicted_bytes += static_cast<int64_t>(value->nbytes);
  if (auto* listener = step_listener()) listener->evicted(lock, *value);
  return true;
}

int64_t recompute_ns(TapeLock& lock, const Value& value) {
  constexpr size_t kMostWalked = 256;
  const uint64_t number = ++lock.tape().plan_number;
  c10::SmallVector<Op*, 32> found{value.producer};
  value.producer->mark = number;
  int64_t sum = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    sum += found[i]->forward_ns;
    for (const auto& ref : found[i]->refs_in) {
      if (!ref.value || is_source(*ref.value) || ref.value->producer->mark == number || seems_resident(*ref.value))
        continue;
      if (found.size() >= kMostWalked) {
        if (ref.value->is_evicted()) sum += cap().classes.ns_once(*ref.value, number);
        continue;
      }
      ref.value->producer->mark = number;
      found.push_back(ref.value->producer);
    }
  }
  return sum;
}

uint64_t next_use_distance(TapeLock&, const Value& value) { return cap().history.distance(value); }

Now now(TapeLock& lock) {
  return {lock.tape().next_seq, cap().history.position(), cap().steps, cap().changes, cap().evicted.size()};
}

void note_made(TapeLock& lock, Value* value) {
  cap().history.note_made(*value);
  touch(lock, value);
}

bool put_back(TapeLock& lock, Value* value, c10::Storage& bytes) {
  if (!value->is_evicted()) return false;
  auto storage = value->storage.lock();
  if (!storage) return false;
  (void)storage->_mutable_data_ptr_no_checks().release_context();
  allow_access(storage.get());
  storage->set_data_ptr_noswap(std::move(bytes.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
  bytes = c10::Storage(std::move(storage));
  arm(value, bytes.unsafeGetStorageImpl());
  if (value->map_owns) tag(value, bytes.unsafeGetStorageImpl());
  value->last_use = lock.tape().next_seq;
  end_eviction(lock, value);
  touch(lock, value);
  return true;
}

void end_step() {
  auto* region = Tape::get().cap.load();
  if (!region) {
    cap().counters.unrecorded_steps += Tape::get().rests.load() ? 1 : 0;
    return;
  }
  {
    TapeLock lock;
    collect_gone(lock);
    // A loss would hold everything that it was computed from.
    std::vector<Value*> small;
    lock.tape().map.for_each([&](Value* value) {
      if (value->region == region && value->nbytes < kWorthHistory && is_resident(*value)) small.push_back(value);
    });
    for (auto* value : small) turn_into_source(lock, value);
  }
  TapeLock lock;
  cap().last_operators_ns = std::exchange(cap().step, {}).operators_ns;
  cap().passes.clear();
  cap().history.end_step();
  ++cap().steps;
  collect_gone(lock);
  settle(lock, ThreadState::get());
  sweep_map(lock);
  auto& touched = lock.tape().touched;
  std::erase(touched, nullptr);  // it may be long until the next eviction
  for (size_t i = 0; i < touched.size(); ++i) touched[i]->touched_index = static_cast<uint32_t>(i);
  const uint64_t number = ++lock.tape().plan_number;
  std::vector<Op*> ops;
  const auto reach = [&](Op* op) {
    if (op->mark == number) return;
    op->mark = number;
    ops.push_back(op);
  };
  for (auto* value : region->values)
    if (value->producer && value->refs > 0) reach(value->producer);
  for (size_t i = 0; i < ops.size(); ++i)
    for (const auto& ref : ops[i]->refs_in)
      if (ref.value && !is_source(*ref.value)) reach(ref.value->producer);
  std::sort(ops.begin(), ops.end(), is_earlier);
  for (auto* op : ops)
    for (auto& out : op->outs)
      if (out.value && (out.value->gradient || out.value->fixed) && is_resident(*out.value))
        turn_into_source(lock, out.value);
  mark_lost(lock, ops);
  rest_after_step(lock);
}

void forget_history(TapeLock& lock) {
  const auto* region = lock.tape().cap.load();
  if (!region) return;
  for (auto* value : std::vector<Value*>(region->values))
    if (is_resident(*value)) turn_into_source(lock, value);
}

void note_gradient(const at::Tensor& parameter) {
  const auto& gradient = parameter.grad();
  if (!Tape::get().cap.load() || !gradient.defined() || !has_plain_storage(gradient)) return;
  TapeLock lock;
  auto* value = value_of(lock, gradient);
  value->gradient = true;
  if (!std::exchange(value->map_owns, true)) retain(value);
  turn_into_source(lock, value);
  // The operators that made and updated the parameter are no ancestors of what is computed from it.
  if (has_plain_storage(parameter))
    if (auto* known = find_value(lock, parameter.storage().unsafeGetStorageImpl()); known && !known->is_evicted()) {
      known->fixed = true;
      turn_into_source(lock, known);
    }
}

}  // namespace refrain::tape
