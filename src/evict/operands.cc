#include "evict/operands.h"

#include <algorithm>

#include "evict/cap_state.h"
#include "evict/securing.h"
#include "replay/run_again.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

// Lists the evicted values computed from `source`.
void add_dependents(TapeLock& lock, const Value* source, std::vector<Value*>& dependents) {
  for (auto* value : cap().evicted) {
    const uint64_t number = ++lock.tape().plan_number;
    std::vector<Op*> todo{value->producer};
    value->producer->mark = number;
    bool depends = false;
    while (!todo.empty() && !depends) {
      auto* op = todo.back();
      todo.pop_back();
      for (const auto& ref : op->refs_in) {
        if (!ref.value) continue;
        depends |= ref.value == source;
        if (is_source(*ref.value) || ref.value->producer->mark == number) continue;
        ref.value->producer->mark = number;
        todo.push_back(ref.value->producer);
      }
    }
    if (!depends) continue;
    retain(value);
    dependents.push_back(value);
  }
}

// Lists and locks the evicted values computed from `source`, which is about to be overwritten: recomputed, they must
// stay resident until then. @return whether `source` is needed at all.
bool lock_dependents(TapeLock& lock, const Value& source, std::vector<Value*>& missing,
                     c10::SmallVectorImpl<Value*>& locked) {
  if (source.needed == 0 && !(source.fixed && source.producer && source.producer->secured > 0)) return false;
  const auto first = missing.size();
  add_dependents(lock, &source, missing);
  for (auto i = first; i < missing.size(); ++i) {
    retain(missing[i]);
    ++missing[i]->locks;
    locked.push_back(missing[i]);
  }
  return true;
}

void release_locked(TapeLock& lock, c10::ArrayRef<Value*> values) {
  for (auto* value : values) {
    --value->locks;
    touch(lock, value);
    lock.release(value);
  }
}

}  // namespace

bool begin_operands(TapeLock& lock, const OpTraits& traits, Arguments& arguments, Operands& operands) {
  operands.outer = std::exchange(ThreadState::get().operands_of, &traits);
  operands.is_begun = true;
  const auto now = lock.tape().next_seq;
  auto& history = cap().history;
  if (history.position() >= StepHistory::kMostOperators) {
    history.end_step();
    ++cap().steps;
  }
  history.note_operator(traits);
  const auto add = [&](Argument& argument) {
    if (!argument.storage) return;
    auto* value = argument.value = find_value(lock, argument.storage);
    if (!value) return;
    retain(value);
    ++value->locks;
    value->last_use = now;
    history.note_use(*value);
    touch(lock, value);
    value->fixed |= traits.collective;
    operands.values.push_back(value);
    if (value->is_evicted() && !traits.only_metadata) {
      retain(value);
      operands.missing.push_back(value);
    }
    if (!argument.write) return;
    ++value->writers;  // what depends on it is not evicted from now on
    operands.overwritten.push_back(value);
    if (lock_dependents(lock, *value, operands.missing, operands.values) && value->fixed)
      operands.written.push_back(value);
  };
  for (auto& argument : arguments) add(argument);
  for (auto& argument : arguments.inside()) {
    add(argument);
    if (argument.value) argument.value->fixed = true;
  }
  return operands.missing.empty() && operands.written.empty();
}

void release_operands(TapeLock& lock, Operands& operands) {
  for (auto* value : operands.overwritten) --value->writers;
  release_locked(lock, operands.values);
  for (auto* value : operands.missing) lock.release(value);
  operands.overwritten.clear();
  operands.values.clear();
  operands.missing.clear();
}

void materialize_operands(Operands& operands) {
  while (!operands.missing.empty()) {
    bring_back(operands.missing);
    release_all(operands.missing);
    TapeLock lock;
    for (auto* value : operands.overwritten)
      lock_dependents(lock, *value, operands.missing, operands.values);  // evicted meanwhile
  }
  if (operands.written.empty()) return;
  TapeLock lock;
  for (auto* value : operands.written) turn_into_source(lock, value);
}

void materialize_dependents(Value* source) {
  {
    TapeLock lock;
    ++source->writers;  // what depends on it is not evicted from now on
  }
  std::vector<Value*> missing;
  c10::SmallVector<Value*, 8> locked;  // recomputed values: secured by others, they could be evicted a second time
  const auto end = [&] {
    TapeLock lock;
    --source->writers;
    release_locked(lock, locked);
    for (auto* value : missing) lock.release(value);
  };
  try {
    for (;;) {
      {
        TapeLock lock;
        collect_gone(lock);
        lock_dependents(lock, *source, missing, locked);
      }
      if (missing.empty()) break;
      bring_back(missing);
      release_all(missing);
    }
  } catch (...) {
    end();
    throw;
  }
  end();
}

void pin(const at::Tensor& tensor, int by) {
  if (!tensor.defined() || !has_plain_storage(tensor)) return;
  std::vector<Value*> one;
  {
    TapeLock lock;
    auto* value = find_value(lock, tensor.storage().unsafeGetStorageImpl());
    if (!value) return;
    value->pins = std::max(0, value->pins + by);
    if (by < 0) touch(lock, value);
    if (by < 0 || !value->is_evicted()) return;
    retain(value);
    one.push_back(value);
  }
  try {
    bring_back(one);
  } catch (...) {
    pin(tensor, -1);
    release_all(one);
    throw;
  }
  release_all(one);
}

std::string running_operator() {
  const auto* traits = ThreadState::get().operands_of;
  return traits ? traits->name() : std::string();
}

}  // namespace refrain::tape
