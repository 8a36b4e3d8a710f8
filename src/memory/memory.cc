#include "refrain/memory.h"

#include <c10/core/CPUAllocator.h>
#include <fmt/format.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "base/fork.h"
#include "base/ordered_mutex.h"
#include "memory/block.h"
#include "memory/failing_allocator.h"
#include "memory/heap_allocator.h"
#include "memory/limiting_allocator.h"
#include "memory/poisoning_allocator.h"
#include "memory/process_memory.h"
#include "memory/resident_allocator.h"
#include "memory/stack.h"
#include "memory/tensor_heap.h"
#include "memory/testing.h"
#include "memory/torch_allocator.h"
#include "memory/tracking_allocator.h"
#include "refrain/torch_error.h"

namespace refrain {
namespace {

/// All limits alive; the smallest of a kind is in force.
class Limits {
 public:
  using Apply = std::function<void(Budget::Kind kind, Bytes limit)>;

  explicit Limits(Apply apply) : apply_(std::move(apply)) { lock_at_fork(mutex_); }

  int64_t add(Budget limit) {
    std::lock_guard lock(mutex_);
    limits_.emplace(++last_id_, limit);
    apply(limit.kind());
    return last_id_;
  }

  void remove(int64_t id) {
    std::lock_guard lock(mutex_);
    const auto found = limits_.find(id);
    if (found == limits_.end()) return;  // of a parent process
    const auto kind = found->second.kind();
    limits_.erase(found);
    apply(kind);
  }

  void clear() {
    std::lock_guard lock(mutex_);
    limits_.clear();
    for (auto kind : {Budget::Kind::kBytes, Budget::Kind::kProcess}) apply(kind);
  }

 private:
  void apply(Budget::Kind kind) {
    Bytes least = LimitingAllocator::kNoLimit;
    for (const auto& [id, limit] : limits_)
      if (limit.kind() == kind) least = std::min(least, limit.bytes());
    apply_(kind, least);
  }

  Apply apply_;
  OrderedMutex mutex_{LockOrder::kLimits};  // guards what follows
  std::map<int64_t, Budget> limits_;
  int64_t last_id_ = 0;
};

std::atomic<bool> is_installed{false};

void begin_without_limits();

struct Stack {
  const Bytes resident_before = resident_now();
  TensorHeap* pages = TensorHeap::get();
  HeapAllocator heap{*c10::GetCPUAllocator(), pages};
  ResidentAllocator resident{heap, pages};
  PoisoningAllocator poisoning{resident};
  FailingAllocator failing{poisoning};
  TrackingAllocator tracking{failing};
  LimitingAllocator limiting{tracking};
  TorchAllocator torch{limiting};
  Limits limits{[this](Budget::Kind kind, Bytes limit) {
    if (kind == Budget::Kind::kProcess) return resident.set_limit(limit);
    limiting.set_limit(limit);
    if (pages) pages->set_limit(limit);
  }};

  Stack() {
    constexpr uint8_t kHighestPriority = 255;
    c10::SetCPUAllocator(&torch, kHighestPriority);
    tracking.lock_at_forks();
    resident.lock_at_forks();
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

/// @throws  as `MemoryLimit` of the process.
void check_process_limit(Bytes limit) {
  if (!stack().pages) {
    throw EnvironmentError(
        "[refrain::MemoryLimit] the heap for tensors is off (REFRAIN_TENSOR_HEAP=malloc, or AddressSanitizer), without which a limit of "
        "resident bytes cannot be kept; switch it on, or limit the bytes of tensors instead (`Budget::bytes`)");
  }
  release_free_memory();
  const Bytes resident = resident_now();
  const Bytes excess = resident - (limit - ResidentAllocator::kLeastReserve);
  if (excess <= 0) return;
  throw OutOfMemory(
      fmt::format(
          "[refrain::MemoryLimit] out of memory: the process has {} resident already, the limit is {} bytes ({}) with {} of it for "
          "scratch: {} bytes ({}) are missing before anything runs; raise the limit to {} at least",
          format_bytes(resident), limit, format_bytes(limit), format_bytes(ResidentAllocator::kLeastReserve), excess,
          format_bytes(excess), format_bytes(limit + excess)),
      OutOfMemoryReason::kProcessLimit,
      {.requested = 0, .in_use = resident, .limit = limit, .min_limit = limit + excess});
}

}  // namespace

void install_memory_tracking() { stack(); }

TrackingAllocator& tracking_allocator() { return stack().tracking; }
LimitingAllocator& limiting_allocator() { return stack().limiting; }
ResidentAllocator& resident_allocator() { return stack().resident; }

void set_relief(LimitingAllocator::Relief* relief) {
  stack().limiting.set_relief(relief);
  stack().resident.set_relief(relief, stack().limiting);
}

Bytes resident_before() { return stack().resident_before; }

void refuse_fraction(const Budget& budget, const char* who) {
  if (budget.kind() != Budget::Kind::kFraction) return;
  throw InvalidArgument(fmt::format(
      "[refrain::{}] found Budget::fraction({}), expected Budget::bytes, process or available; a fraction is of the peak "
      "of a step that MemoryBudget plans",
      who, budget.fraction()));
}

bool is_tracked(const at::DataPtr& data) {
  return data.get() && data.get_context() == data.get() && data.get_deleter() == stack().torch.raw_deleter();
}

const Block* tracked_block(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  const at::DataPtr& data = std::as_const(*tensor.storage().unsafeGetStorageImpl()).data_ptr();
  return is_tracked(data) ? &Block::of(data.get()) : nullptr;
}

bool memory_tracking_installed() noexcept { return is_installed.load(); }

std::string tensor_heap() { return stack().pages ? "refrain" : "malloc"; }

MemoryStats memory_stats() {
  if (!memory_tracking_installed()) return {};
  MemoryStats stats = stack().tracking.stats();
  const auto of_system = resident_bytes();
  stats.resident = of_system.current;
  stats.resident_peak = of_system.peak;
  stats.resident_before = stack().resident_before;
  if (const auto* pages = stack().pages) {
    stats.heap_held = pages->held();
    stats.heap_free = pages->free();
  }
  return stats;
}

void reset_peak_memory() {
  if (!memory_tracking_installed()) return;
  stack().tracking.reset_peak();
  reset_resident_peak();
}

void release_free_memory() {
  if (auto* pages = TensorHeap::get()) {
    pages->set_limit(0);
    pages->hold_at_most(0);
  }
#ifdef __GLIBC__
  malloc_trim(0);
#endif
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

// Else many small blocks that are freed, of a report or a tape, make it give pages back that the next step has to fault in again: 2 us each,
// several times what watching or recording costs, and in another step than the one that freed them.
void keep_heap() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most it takes: half of an arena
#endif
}

MemoryLimit::MemoryLimit(Budget budget) : kind_(budget.kind()) {
  refuse_fraction(budget, "MemoryLimit");
  if (kind_ == Budget::Kind::kProcess) check_process_limit(budget.bytes());
  id_ = stack().limits.add(budget);
  stack().limiting.tell_limit_lowered();
}

MemoryLimit::~MemoryLimit() { stack().limits.remove(id_); }

namespace memory_testing {

void fail_nth_allocation(int64_t n) { stack().failing.fail_nth(n); }
bool failure_fired() { return stack().failing.fired(); }
void set_poison(bool on) { stack().poisoning.set_on(on); }

}  // namespace memory_testing
}  // namespace refrain
