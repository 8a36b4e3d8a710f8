#include "refrain/memory.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "base/fork.h"
#include "memory/block.h"
#include "memory/failing_allocator.h"
#include "memory/heap_allocator.h"
#include "memory/limiting_allocator.h"
#include "memory/poisoning_allocator.h"
#include "memory/stack.h"
#include "memory/testing.h"
#include "memory/torch_allocator.h"
#include "memory/tracking_allocator.h"
#include "refrain/error.h"

namespace refrain {
namespace {

/// All limits alive; the smallest is in force.
class Limits {
 public:
  explicit Limits(LimitingAllocator& target) : target_(target) { lock_at_fork(ForkOrder::kLimits, mutex_); }

  int64_t add(Bytes limit) {
    std::lock_guard lock(mutex_);
    limits_.emplace(++last_id_, limit);
    apply();
    return last_id_;
  }

  void remove(int64_t id) {
    std::lock_guard lock(mutex_);
    limits_.erase(id);
    apply();
  }

  void clear() {
    std::lock_guard lock(mutex_);
    limits_.clear();
    apply();
  }

 private:
  void apply() {
    Bytes least = LimitingAllocator::kNoLimit;
    for (const auto& [id, limit] : limits_) least = std::min(least, limit);
    target_.set_limit(least);
  }

  LimitingAllocator& target_;
  std::mutex mutex_;  // guards what follows
  std::map<int64_t, Bytes> limits_;
  int64_t last_id_ = 0;
};

std::atomic<bool> is_installed{false};

void begin_without_limits();

struct Stack {
  HeapAllocator heap{*c10::GetCPUAllocator()};
  PoisoningAllocator poisoning{heap};
  FailingAllocator failing{poisoning};
  TrackingAllocator tracking{failing};
  LimitingAllocator limiting{tracking};
  TorchAllocator torch{limiting};
  Limits limits{limiting};

  Stack() {
    constexpr uint8_t kHighestPriority = 255;
    c10::SetCPUAllocator(&torch, kHighestPriority);
    tracking.lock_at_forks();
    call_in_forked_child(ForkCall::kLimits, &begin_without_limits);
    is_installed.store(true);
  }
};

Stack& stack() {
  // never destroyed: static tensors are freed through it after main
  static Stack& instance = *new Stack;
  return instance;
}

void begin_without_limits() { stack().limits.clear(); }

}  // namespace

void install_memory_tracking() { stack(); }

TrackingAllocator& tracking_allocator() { return stack().tracking; }
LimitingAllocator& limiting_allocator() { return stack().limiting; }

bool is_tracked(const at::DataPtr& data) {
  return data.get() && data.get_context() == data.get() && data.get_deleter() == stack().torch.raw_deleter();
}

const Block* tracked_block(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  const at::DataPtr& data = std::as_const(*tensor.storage().unsafeGetStorageImpl()).data_ptr();
  return is_tracked(data) ? &Block::of(data.get()) : nullptr;
}

bool memory_tracking_installed() noexcept { return is_installed.load(); }

MemoryStats memory_stats() { return memory_tracking_installed() ? stack().tracking.stats() : MemoryStats{}; }

void reset_peak_memory() {
  if (memory_tracking_installed()) stack().tracking.reset_peak();
}

struct MemoryScope::State {
  TrackingAllocator& tracking = stack().tracking;
  TrackingAllocator::Watch watch;
};

MemoryScope::MemoryScope() : state_(new State) { state_->tracking.open(state_->watch); }

MemoryScope::~MemoryScope() {
  state_->tracking.close(state_->watch);
  delete state_;
}

Bytes MemoryScope::current() const { return state_->tracking.current() - state_->watch.start; }

Bytes MemoryScope::peak() const { return state_->watch.peak.load() - state_->watch.start; }

int64_t MemoryScope::allocations() const { return state_->tracking.allocations() - state_->watch.first_allocation; }

MemoryLimit::MemoryLimit(Bytes limit) {
  if (limit < 0) {
    throw InvalidArgument("[refrain::MemoryLimit] `limit` is " + std::to_string(limit) +
                          ", expected 0 or more bytes; it is an absolute level, like `memory_stats().current`");
  }
  id_ = stack().limits.add(limit);
}

MemoryLimit::~MemoryLimit() { stack().limits.remove(id_); }

namespace memory_testing {

void fail_nth_allocation(int64_t n) { stack().failing.fail_nth(n); }
bool failure_fired() { return stack().failing.fired(); }
void set_poison(bool on) { stack().poisoning.set_on(on); }

}  // namespace memory_testing
}  // namespace refrain
