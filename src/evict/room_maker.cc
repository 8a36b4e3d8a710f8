#include "evict/room_maker.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "base/fork.h"
#include "evict/cap_state.h"
#include "evict/evict.h"
#include "evict/operands.h"
#include "evict/rest.h"
#include "memory/refusals.h"
#include "memory/stack.h"
#include "tape/thread_state.h"

namespace refrain::budget {

RoomMaker& RoomMaker::get() {
  static auto* instance = new RoomMaker;
  return *instance;
}

RoomMaker::RoomMaker() {
  lock_at_fork(mutex_);
  call_in_forked_child(ForkCall::kRoom, [] { get().forget_caps(); });
}

void RoomMaker::forget_caps() {
  {
    std::lock_guard guard(mutex_);
    options_.clear();
    set_relief(nullptr);
  }
  auto& counters = tape::cap_counters();
  counters.evictions = counters.evicted_bytes = counters.recomputes = counters.recompute_ns = 0;
}

int RoomMaker::add(const MemoryCapOptions& options) {
  std::lock_guard guard(mutex_);
  if (options_.empty()) policy_ns_ = 0;
  tape::set_before_pass([] { get().check_before_pass(); });
  options_.emplace_back(++last_number_, options);
  set_relief(this);
  return last_number_;
}

void RoomMaker::remove(int number) {
  std::lock_guard guard(mutex_);
  std::erase_if(options_, [&](const auto& entry) { return entry.first == number; });
  if (options_.empty()) set_relief(nullptr);  // a limit without a cap refuses in its own name
}

MemoryCapOptions RoomMaker::options() {
  std::lock_guard guard(mutex_);
  return options_.empty() ? MemoryCapOptions() : options_.back().second;
}

Bytes RoomMaker::evict_until(Bytes missing) {
  const auto options = this->options();
  tape::TapeLock lock;
  tape::collect_gone(lock);
  const auto* region = lock.tape().cap.load();
  if (!region) return 0;
  queue_.set_up(options.heuristic(), options.min_bytes());
  const auto step = tape::now(lock).step;
  const bool is_new = std::exchange(lock.tape().candidates, &queue_) == nullptr;
  if (is_new) {
    queue_.fill(lock, *region);
  } else {
    if (step_ != step) queue_.renew(lock);
    queue_.take_touched(lock);
  }
  step_ = step;
  Bytes freed = evict_queued(lock, missing);
  if (freed >= missing || is_new) return freed;
  queue_.fill(lock, *region);  // values that became evictable unseen
  return freed + evict_queued(lock, missing - freed);
}

Bytes RoomMaker::evict_queued(tape::TapeLock& lock, Bytes missing) {
  queue_.begin(lock);
  Bytes freed = 0;
  while (freed < missing) {
    auto* value = queue_.pop(lock);
    if (!value) break;
    if (tape::evict(lock, value)) freed += static_cast<Bytes>(value->nbytes);
  }
  return freed;
}

void RoomMaker::check_overhead(Bytes limit) {
  const double most = options().max_overhead();
  if (most == std::numeric_limits<double>::infinity()) return;
  tape::StepTimes step;
  {
    tape::TapeLock lock;
    step = tape::step_times(lock);
  }
  const double allowed = most * static_cast<double>(step.operators_ns);
  if (static_cast<double>(step.again_ns) <= allowed) return;
  // With a higher limit some values would not have been evicted, and the passes for them would not have run.
  std::vector<tape::StepPass> passes;
  {
    tape::TapeLock lock;
    passes = tape::step_passes(lock);
  }
  std::sort(passes.begin(), passes.end(), [](const auto& a, const auto& b) { return a.demand > b.demand; });
  double spent = 0.0;
  Bytes enough = limit;
  for (const auto& pass : passes) {
    spent += static_cast<double>(pass.ns);
    if (spent <= allowed) continue;
    enough = pass.demand;
    break;
  }
  refusals_.fetch_add(1);
  throw OutOfMemory(
      fmt::format(
          "[refrain::MemoryCap] out of memory: under the limit {} bytes ({}) recompute overhead {:.2f} exceeds max_overhead {:.2f}: this "
          "step spent {:.1f} ms recomputing beside {:.1f} ms of operators; the smallest limit that keeps max_overhead so far is {} bytes ({}); "
          "raise the limit or max_overhead",
          limit, format_bytes(limit),
          static_cast<double>(step.again_ns) / static_cast<double>(std::max<int64_t>(step.operators_ns, 1)), most,
          static_cast<double>(step.again_ns) / 1e6, static_cast<double>(step.operators_ns) / 1e6, enough,
          format_bytes(enough)),
      OutOfMemoryReason::kMaxOverhead,
      {.requested = 0, .in_use = limiting_allocator().in_use(), .limit = limit, .min_limit = enough});
}

// Outside of any allocation, where the allocator would note it.
void RoomMaker::check_before_pass() {
  try {
    check_overhead(limiting_allocator().limit());
  } catch (const OutOfMemory& error) {
    note_refusal(error);
    throw;
  }
}

void RoomMaker::rose() noexcept { tape::wake_above(); }

void RoomMaker::limit_lowered() noexcept { tape::wake_unless_roomy(); }

void RoomMaker::make_room(Bytes missing, Bytes requested, Bytes limit) {
  tape::wake();
  check_overhead(limit);
  const auto start = std::chrono::steady_clock::now();
  {
    tape::TapeLock lock;
    tape::set_demand(lock, limit + missing + tape::absent_bytes(lock));
  }
  const Bytes freed = evict_until(missing);
  const int64_t took =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
  policy_ns_.fetch_add(took);
  tape::ThreadState::get().made_room_ns += took;
  if (freed > 0) return;
  {
    tape::TapeLock lock;
    tape::forget_history(lock);
  }
  const Bytes floor = limiting_allocator().in_use() + requested;
  if (floor <= limit) return;  // another thread freed memory
  const auto op = tape::running_operator();
  refusals_.fetch_add(1);
  throw OutOfMemory(
      fmt::format(
          "[refrain::MemoryCap] out of memory: {} needs {} bytes ({}) where {} bytes ({}) cannot be evicted, limit {} "
          "bytes ({}): {} bytes ({}) are missing; raise the limit, or lower the batch",
          op.empty() ? std::string("an allocation") : "`" + op + "`", requested, format_bytes(requested),
          floor - requested, format_bytes(floor - requested), limit, format_bytes(limit), floor - limit,
          format_bytes(floor - limit)),
      OutOfMemoryReason::kMemoryCap,
      {.requested = requested, .in_use = floor - requested, .limit = limit, .min_limit = floor});
}

void RoomMaker::evict_all() { evict_until(LimitingAllocator::kNoLimit); }

}  // namespace refrain::budget
