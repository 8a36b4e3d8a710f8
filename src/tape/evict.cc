#include "tape/evict.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/flat_hash_map.h>
#include <c10/util/hash.h>

#include <algorithm>

#include "memory/block.h"
#include "memory/stack.h"
#include "tape/evicted_classes.h"
#include "tape/engine.h"
#include "tape/key.h"
#include "tape/replayer.h"
#include "tape/step_history.h"
#include "tape/step_listener.h"

namespace refrain::tape {
namespace {

/// Guarded by the tape's lock.
struct Cap {
  int open = 0;
  bool closing = false;  ///< nothing leaves any more
  std::vector<Value*> evicted;
  EvictedClasses classes;
  StepHistory history;
  uint64_t steps = 0;  ///< ended
  uint64_t changes = 0;  ///< to what is evicted
  CapCounters counters;
  StepTimes step;
  std::vector<StepPass> passes;  ///< of this step
  int64_t last_operators_ns = 0;
  int64_t absent_bytes = 0;
  int64_t demand = 0;
  std::atomic<void (*)()> before_pass{nullptr};
  ska::flat_hash_map<size_t, int64_t> least_ns;
  std::function<void()> before_operator;
};

Cap& cap() {
  static auto* instance = new Cap;
  return *instance;
}

// What runs when an evicted storage dies, or tagged memory, possibly under the tape's lock.
void died(void* context) {
  auto* value = static_cast<Value*>(context);
  prefetch(value);
  auto& gone = Tape::get().gone;
  value->next_gone = gone.load(std::memory_order_relaxed);
  while (!gone.compare_exchange_weak(value->next_gone, value, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

bool is_source(const Value& value) { return !value.producer || !value.region || !value.region->cap; }

// Whether a source still has the bytes that `ref` read.
bool is_readable(const Value& source, const ArgRef& ref) {
  if (source.unknown || source.gradient || source.writers > 0 || source.exposed) return false;
  if (ref.version_moved() && !source.private_copy) return false;
  return static_cast<bool>(resident(source));
}

constexpr size_t kWorthHistory = 1024;  ///< bytes, from one step to the next

bool is_resident(const Value& value) { return !value.evicted && !value.stale && !value.storage.expired(); }

// As `is_resident` after `collect_gone`, without a look at the storage.
bool seems_resident(const Value& value) { return !value.evicted && !value.stale && value.key && (value.tagged || !value.storage.expired()); }

// A value that nothing has to be computed for becomes one that others are computed from.
void make_source(TapeLock& lock, Value* value) {
  if (!value->producer || value->producer->secured > 0) return;
  value->producer->outs[value->out].value = nullptr;
  lock.release(std::exchange(value->producer, nullptr));
  if (!value->gradient) disown(lock, value);
}

// Operators that cannot be replayed, as something behind them is gone or has been overwritten: what they left in memory becomes a source.
// @param ops  in recorded order; operators behind them that are not among them can be replayed.
void forget_lost(TapeLock& lock, c10::ArrayRef<Op*> ops) {
  for (auto* op : ops) {
    if (op->secured > 0) continue;
    for (const auto& ref : op->refs_in)
      op->lost |= ref.value && (is_source(*ref.value) ? !is_readable(*ref.value, ref) : ref.value->producer->lost);
    if (!op->lost) continue;
    for (auto& out : op->outs)
      if (out.value && is_resident(*out.value)) make_source(lock, out.value);
  }
}

bool is_earlier(const Op* a, const Op* b) { return a->seq < b->seq; }

// The operators behind `op` that nobody has secured yet, and itself. @return whether all of them can be replayed.
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

// Makes sure that `op` can be replayed until `release_op`: counts on what is behind it, holds sources.
bool secure(TapeLock& lock, Op* op) {
  if (op->secured == 0) {
    c10::SmallVector<Op*, 16> found;
    if (!op->lost && !find_unsecured(lock, op, found)) {
      // what lies between the loss and `op` may still be in memory, and serve as a source
      std::sort(found.begin(), found.end(), is_earlier);
      ++op->refs;
      forget_lost(lock, found);
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

void no_longer_evicted(TapeLock& lock, Value* value) {
  auto& all = cap().evicted;
  all[value->evicted_index] = all.back();
  all[value->evicted_index]->evicted_index = value->evicted_index;
  all.pop_back();
  value->evicted = false;
  ++cap().changes;
  cap().absent_bytes -= static_cast<int64_t>(value->nbytes);
  cap().classes.remove(*value);
  if (cap().classes.is_worn()) cap().classes.rebuild(all);
  release_op(lock, value->producer);
  lock.release(value);
}

const char* const kNotThere =
    "[refrain::MemoryCap] a pointer was asked for to the bytes of a tensor that the cap has evicted. Operators of threads under the "
    "cap make it resident; for code that takes the pointer (const_data_ptr, torch::save) pin the tensor first: `PinScope "
    "pin(tensor);`. On a thread of your own: `CapThreadScope scope;`, or pin before the thread reads.";

// What is evicted and computed from `source`.
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

// What is evicted and computed from `source`, which is about to be overwritten. Once back, it must not leave before that.
// @return whether `source` is needed at all.
bool lock_dependents(TapeLock& lock, const Value& source, std::vector<Value*>& missing, c10::SmallVectorImpl<Value*>& locked) {
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

// What cannot come back stays as it is.
void try_bring_back_one(Value* value) {
  try {
    bring_back({value});
  } catch (...) {
  }
}

constexpr size_t kMostPasses = size_t{1} << 16;

// Half as many, with the demand of the greater and the time of both.
void merge_pairs(std::vector<StepPass>& passes) {
  std::sort(passes.begin(), passes.end(), [](const auto& a, const auto& b) { return a.demand < b.demand; });
  for (size_t i = 0; i < passes.size() / 2; ++i) passes[i] = {passes[2 * i + 1].demand, passes[2 * i].ns + passes[2 * i + 1].ns};
  passes.resize(passes.size() / 2);
}

void release_all(std::vector<Value*>& values) {
  if (values.empty()) return;
  TapeLock lock;
  for (auto* value : values) lock.release(value);
  values.clear();
}

}  // namespace

CapCounters& cap_counters() { return cap().counters; }

void set_before_operator(std::function<void()> call) { cap().before_operator = std::move(call); }

bool has_before_operator() { return static_cast<bool>(cap().before_operator); }

void before_operator() {
  if (cap().before_operator) cap().before_operator();
}

void open_cap() {
  install();
  Block::owner_died.store(&died);
  {
    TapeLock lock;
    if (cap().open++ == 0) {
      cap().history.clear();
      cap().step = {};
      cap().passes.clear();
      cap().last_operators_ns = 0;
      auto& counters = cap().counters;
      counters.evictions = counters.evicted_bytes = counters.recomputes = counters.recompute_ns = 0;
      auto* region = new Region;
      region->cap = true;
      region->refs = 1;
      region->top = region;
      ++lock.tape().stats.live_regions;
      lock.tape().cap.store(region);
    }
  }
  set_tape_included(true);
}

void close_cap() {
  std::vector<Value*> left;
  {
    TapeLock lock;
    if (cap().open > 1) {
      --cap().open;
      return;
    }
    collect_gone(lock);
    cap().closing = true;
    left = cap().evicted;
    for (auto* value : left) retain(value);
  }
  try {
    bring_back(left);
  } catch (...) {
    // not all at once: there may be no room, even without the limit
    for (auto* value : left) try_bring_back_one(value);
  }
  release_all(left);
  {
    TapeLock lock;
    settle(lock, ThreadState::get());
    cap().open = 0;
    cap().closing = false;
    auto* region = lock.tape().cap.exchange(nullptr);
    region->active = false;
    for (auto* value : region->values) {
      if (value->evicted) continue;
      make_source(lock, value);
      disown(lock, value);
    }
    lock.tape().map.for_each([&](Value* value) {
      if (value->gradient && !value->region) disown(lock, value);
    });
    if (auto* candidates = std::exchange(lock.tape().candidates, nullptr)) candidates->clear();
    for (auto* value : std::exchange(lock.tape().touched, {}))
      if (value) value->touched = false;
    lock.release(region);
  }
  leave_dispatch();
}

bool join_cap() {
  if (!Tape::get().cap.load() || c10::impl::tls_is_dispatch_key_included(kTapeKey)) return false;
  set_tape_included(true);
  return true;
}

void leave_cap() {
  auto& thread = ThreadState::get();
  TapeLock lock;
  settle(lock, thread);
  set_tape_included(false);
}

bool is_evictable(const Value& value) {
  return value.producer && !value.fixed && !value.unknown && !value.gradient && !value.parked && seems_resident(value) && value.locks == 0 &&
         value.pins == 0 && value.holds == 0 && !value.slots;
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
  (void)untag(value, storage.get());  // it is alive: the memory has not told
  const auto device = data.device();
  auto bytes = std::move(data);
  retain(value);
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, value, &died, device));
  storage->release_data_and_set_meta_custom_data_ptr_error_msg_(kNotThere);
  value->evicted = true;
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
      if (!ref.value || is_source(*ref.value) || ref.value->producer->mark == number || seems_resident(*ref.value)) continue;
      if (found.size() >= kMostWalked) {
        if (ref.value->evicted) sum += cap().classes.ns_once(*ref.value, number);
        continue;
      }
      ref.value->producer->mark = number;
      found.push_back(ref.value->producer);
    }
  }
  return sum;
}

uint64_t next_use_distance(TapeLock&, const Value& value) { return cap().history.distance(value); }

Now now(TapeLock& lock) { return {lock.tape().next_seq, cap().history.position(), cap().steps, cap().changes, cap().evicted.size()}; }

void note_made(TapeLock& lock, Value* value) {
  cap().history.note_made(*value);
  touch(lock, value);
}

bool put_back(TapeLock& lock, Value* value, c10::Storage& bytes) {
  if (!value->evicted) return false;
  auto storage = value->storage.lock();
  if (!storage) return false;
  (void)storage->_mutable_data_ptr_no_checks().release_context();
  storage->clear_data_ptr_access_error_msg_();
  storage->set_data_ptr_noswap(std::move(bytes.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
  bytes = c10::Storage(std::move(storage));
  arm(value, bytes.unsafeGetStorageImpl());
  if (value->map_owns) tag(value, bytes.unsafeGetStorageImpl());
  value->last_use = lock.tape().next_seq;
  no_longer_evicted(lock, value);
  touch(lock, value);
  return true;
}

void collect_gone(TapeLock& lock) {
  auto& gone = lock.tape().gone;
  if (!gone.load(std::memory_order_relaxed)) return;
  for (auto* value = gone.exchange(nullptr, std::memory_order_acquire); value;) {
    auto* next = value->next_gone;
    if (next) prefetch(next->producer);
    if (std::exchange(value->owed, false)) {
      value->tagged = false;
      lock.release(value);
    } else if (value->evicted) {
      value->stale = true;
      unmap_value(lock, value);
      no_longer_evicted(lock, value);
    } else {
      value->tagged = false;
      if (!value->key) {
        disown(lock, value);
      } else if (value->storage.expired()) {
        value->armed = false;
        unmap_value(lock, value);
      }
    }
    value = next;
  }
}

bool has_gone() { return Tape::get().gone.load() != nullptr; }

StepTimes step_times(TapeLock&) {
  const auto& step = cap().step;
  return {std::max(step.operators_ns, cap().last_operators_ns), step.again_ns};
}

std::vector<StepPass> step_passes(TapeLock&) { return cap().passes; }

void add_time(TapeLock&, int64_t operators_ns) { cap().step.operators_ns += operators_ns; }

void add_pass(TapeLock&, const StepPass& pass) {
  cap().step.again_ns += pass.ns;
  auto& passes = cap().passes;
  passes.push_back(pass);
  if (passes.size() >= kMostPasses) merge_pairs(passes);
}

int64_t absent_bytes(TapeLock&) { return cap().absent_bytes; }

void set_demand(TapeLock&, int64_t bytes) { cap().demand = bytes; }

void set_before_pass(void (*call)()) { cap().before_pass.store(call); }

void before_pass() {
  if (auto* call = cap().before_pass.load()) call();
}

void end_step() {
  auto* region = Tape::get().cap.load();
  if (!region) return;
  {
    TapeLock lock;
    collect_gone(lock);
    // A loss would keep all that it was computed from.
    std::vector<Value*> small;
    lock.tape().map.for_each([&](Value* value) {
      if (value->region == region && value->nbytes < kWorthHistory && is_resident(*value)) small.push_back(value);
    });
    for (auto* value : small) make_source(lock, value);
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
  std::erase(touched, nullptr);  // nobody may ask for a long time
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
      if (out.value && (out.value->gradient || out.value->fixed) && is_resident(*out.value)) make_source(lock, out.value);
  forget_lost(lock, ops);
}

void forget_history(TapeLock& lock) {
  const auto* region = lock.tape().cap.load();
  if (!region) return;
  for (auto* value : std::vector<Value*>(region->values))
    if (is_resident(*value)) make_source(lock, value);
}

void note_gradient(const at::Tensor& parameter) {
  const auto& gradient = parameter.grad();
  if (!Tape::get().cap.load() || !gradient.defined() || !has_plain_storage(gradient)) return;
  TapeLock lock;
  auto* value = value_of(lock, gradient);
  value->gradient = true;
  if (!std::exchange(value->map_owns, true)) retain(value);
  make_source(lock, value);
  // What made the parameter, and moves it, is no part of what is computed from it.
  if (has_plain_storage(parameter))
    if (auto* known = find_value(lock, parameter.storage().unsafeGetStorageImpl()); known && !known->evicted) {
      known->fixed = true;
      make_source(lock, known);
    }
}

std::string running_operator() {
  const auto* traits = ThreadState::get().operands_of;
  return traits ? traits->name() : std::string();
}

int64_t least_ns(TapeLock&, const Op& op, int64_t ns) {
  constexpr size_t kMostKnown = size_t{1} << 16;
  auto& known = cap().least_ns;
  size_t key = reinterpret_cast<uintptr_t>(op.traits);
  for (const auto& ref : op.refs_in)
    for (size_t i = 0; i < ref.meta.sizes_and_strides.size(); ++i)
      key = c10::hash_combine(key, static_cast<size_t>(ref.meta.sizes_and_strides.size_at_unchecked(i)));
  if (known.size() >= kMostKnown) known.clear();
  const auto [entry, is_new] = known.emplace(key, ns);
  if (entry->second > ns) entry->second = ns;
  return entry->second;
}

Operands::Operands(TapeLock& lock, const OpTraits& traits, Arguments& arguments)
    : outer_(std::exchange(ThreadState::get().operands_of, &traits)) {
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
    values_.push_back(value);
    if (value->evicted && !traits.only_metadata) {
      retain(value);
      missing_.push_back(value);
    }
    if (!argument.write) return;
    ++value->writers;  // what would need it again does not leave from now on
    overwritten_.push_back(value);
    if (lock_dependents(lock, *value, missing_, values_) && value->fixed) written_.push_back(value);
  };
  for (auto& argument : arguments) add(argument);
  for (auto& argument : arguments.inside()) {
    add(argument);
    if (argument.value) argument.value->fixed = true;
  }
}

Operands::~Operands() {
  ThreadState::get().operands_of = outer_;
  if (values_.empty() && missing_.empty()) return;
  TapeLock lock;
  release(lock);
}

void Operands::release(TapeLock& lock) {
  for (auto* value : overwritten_) --value->writers;
  release_locked(lock, values_);
  for (auto* value : missing_) lock.release(value);
  overwritten_.clear();
  values_.clear();
  missing_.clear();
}

void Operands::bring_back() {
  while (!missing_.empty()) {
    tape::bring_back(missing_);
    release_all(missing_);
    TapeLock lock;
    for (auto* value : overwritten_) lock_dependents(lock, *value, missing_, values_);  // has left meanwhile
  }
  if (written_.empty()) return;
  TapeLock lock;
  for (auto* value : written_) make_source(lock, value);
}

void bring_back_dependents(Value* source) {
  {
    TapeLock lock;
    ++source->writers;  // what would need it again does not leave from now on
  }
  std::vector<Value*> missing;
  c10::SmallVector<Value*, 8> locked;  // what is back stays: operators that others have secured would let it leave again
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
    if (by < 0 || !value->evicted) return;
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

}  // namespace refrain::tape
