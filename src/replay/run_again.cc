#include "replay/run_again.h"

#include <algorithm>
#include <chrono>

#include "base/fork.h"
#include "replay/pass.h"
#include "tape/cap.h"

namespace refrain::tape {
namespace {

std::unique_lock<OrderedMutex> one_pass() {
  static auto& mutex = make_mutex_for_forks(LockOrder::kPass);
  return std::unique_lock(mutex);
}

void count_pass(TapeLock& lock, std::chrono::steady_clock::time_point start, int64_t operators, int64_t demand) {
  const auto took = std::chrono::steady_clock::now() - start;
  cap_hooks().pass_ended(lock, std::chrono::duration_cast<std::chrono::nanoseconds>(took).count(), operators, demand);
}

// One attempt. @return false if an input of the pass was evicted meanwhile.
bool try_bring_back(const std::vector<Value*>& values, bool lock_inputs) {
  TapeLock lock;
  collect_gone(lock);
  Pass pass(lock);
  bool any = false;
  int64_t demand = 0;
  for (auto* value : values) {
    if (!value->is_evicted()) continue;
    pass.want(value);
    any = true;
    demand = std::max(demand, value->demand);
  }
  if (!any) return true;
  const auto start = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  bool is_whole = true;
  try {
    pass.close(lock);
    if (lock_inputs) pass.lock_inputs();
    lock.raw().unlock();
    pass.run();
  } catch (const Pass::InputLeft&) {
    is_whole = false;
  } catch (...) {
    failure = std::current_exception();
  }
  if (!lock.raw().owns_lock()) lock.raw().lock();
  count_pass(lock, start, pass.operators_run(), demand);
  pass.clear(lock);
  if (failure) std::rethrow_exception(failure);
  return is_whole;
}

}  // namespace

void bring_back(const std::vector<Value*>& values) {
  cap_hooks().before_pass();
  const auto one_at_a_time = one_pass();
  constexpr int kMostAttempts = 16;
  for (int attempt = 1; !try_bring_back(values, attempt == kMostAttempts); ++attempt) {
  }
}

std::vector<Recomputed> run_again(Op& op, Value* consumed, c10::Storage&& bytes) {
  const auto one_at_a_time = one_pass();
  TapeLock lock;
  collect_gone(lock);
  Pass pass(lock);
  bool any = false;
  for (const auto& out : op.outs) {
    if (!out.value || resident(*out.value)) continue;
    pass.want(out.value);
    any = true;
  }
  std::vector<Recomputed> made;
  if (!any) return made;
  const auto start = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  try {
    pass.close(lock);
    pass.lock_inputs();
    if (consumed) pass.consume(consumed);
    lock.raw().unlock();
    bytes = {};
    pass.run();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!lock.raw().owns_lock()) lock.raw().lock();
  count_pass(lock, start, pass.operators_run(), 0);
  if (!failure)
    for (const auto& planned : pass.values()) {
      if (!planned.target || !planned.ours) continue;
      // recomputed in the memory of the value that it overwrites, which is gone
      if (consumed && consumed != planned.value &&
          consumed->storage._unsafe_get_target() == planned.bytes.unsafeGetStorageImpl())
        consumed->note_overwritten();
      install_bytes(lock, planned.value, planned.bytes);
      made.push_back({planned.value, planned.bytes});
    }
  pass.clear(lock);
  if (failure) std::rethrow_exception(failure);
  return made;
}

}  // namespace refrain::tape
