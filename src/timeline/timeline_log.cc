#include "timeline/timeline_log.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>

#include "base/fork.h"
#include "base/thread_owned.h"
#include "memory/block.h"
#include "memory/optimizer_state.h"
#include "memory/process_memory.h"
#include "memory/stack.h"
#include "tape/engine.h"
#include "tape/thread_state.h"

namespace refrain {
namespace {

constexpr size_t kFirstEvents = size_t{1} << 15;

std::atomic<uint64_t> recordings{0};
std::atomic<uint32_t> threads{0};

/// What a thread remembers during one recording.
struct ThreadLog {
  uint64_t recording = 0;
  bool after_backward = false;
  std::optional<MemoryPhase> phase;  ///< logged last
  /// Its last allocations in which no tensor has been seen yet.
  std::array<const void*, 8> shapeless{};
  size_t next_shapeless = 0;

  static ThreadLog& get();
};

struct TimelineThread {
  const uint32_t number = threads.fetch_add(1);
  std::optional<MemoryPhase> forced_phase;
  ThreadLog log;

  static TimelineThread& get() { return thread_owned<TimelineThread>(); }
};

ThreadLog& ThreadLog::get() {
  auto& log = TimelineThread::get().log;
  const uint64_t now = recordings.load(std::memory_order_relaxed);
  if (log.recording != now) {
    log = {};
    log.recording = now;
  }
  return log;
}

MemoryPhase phase_of(const tape::Running& running, const ThreadLog& thread) {
  if (tape::ThreadState::get().recomputing) return MemoryPhase::kRecompute;
  if (running.in_backward) return MemoryPhase::kBackward;
  if (forced_phase()) return *forced_phase();
  if (thread.after_backward && !c10::GradMode::is_enabled()) return MemoryPhase::kOptimizer;
  return MemoryPhase::kForward;
}

}  // namespace

std::optional<MemoryPhase>& forced_phase() { return TimelineThread::get().forced_phase; }

TimelineLog::TimelineLog() { lock_at_fork(mutex_); }

TimelineLog& TimelineLog::get() {
  static auto* log = new TimelineLog;
  return *log;
}

bool TimelineLog::start(TimelineSources sources) {
  auto& tracking = tracking_allocator();
  {
    std::lock_guard lock(mutex_);
    if (is_recording_) return false;
    is_recording_ = true;
    recordings.fetch_add(1);
    record_ = {};
    record_.events.reserve(kFirstEvents);
    record_.thread = TimelineThread::get().number;
    sources_ = std::move(sources);
    begin_ = std::chrono::steady_clock::now();
    sampled_ns_.store(0);
  }
  tape::install();
  tape::set_running_watch(this);
  const Bytes base = tracking.set_observer(this);
  {
    std::lock_guard lock(mutex_);
    record_.base = base;
    record_.resident_before = resident_before();
  }
  know_all();
  sample_resident();
  enter(phase_of(tape::running(), ThreadLog::get()));
  return true;
}

TimelineRecord TimelineLog::stop() {
  know_all();
  sample_resident();
  tracking_allocator().set_observer(nullptr);
  tape::set_running_watch(nullptr);
  sources_ = {};
  std::lock_guard lock(mutex_);
  is_recording_ = false;
  record_.end_ns = (std::chrono::steady_clock::now() - begin_).count();
  return std::exchange(record_, {});
}

void TimelineLog::annotate(MemoryKind kind, std::string_view name, const at::Tensor& tensor) {
  const Block* block = tracked_block(tensor);
  if (!block) return;
  const void* data = block + 1;
  push({.what = TimelineEvent::What::kKnown,
        .kind = kind,
        .module = tape::intern(name),
        .data = data,
        .bytes = static_cast<Bytes>(block->bytes)},
       tensor.sizes());
}

void TimelineLog::know_gradients() {
  for (const auto& [name, parameter] : sources_.parameters)
    annotate(MemoryKind::kGradient, name, parameter.unsafeGetTensorImpl()->grad());
}

void TimelineLog::know_all() {
  for (const auto& [name, tensor] : sources_.parameters) annotate(MemoryKind::kParameter, name, tensor);
  for (const auto& [name, tensor] : sources_.buffers) annotate(MemoryKind::kBuffer, name, tensor);
  know_gradients();
  if (!sources_.optimizer) return;
  for (const auto& [name, tensor] : optimizer_state(*sources_.optimizer, sources_.parameters))
    annotate(MemoryKind::kOptimizerState, name, tensor);
}

void TimelineLog::phase_forced() {
  if (tape::running_is_watched.load()) enter(phase_of(tape::running(), ThreadLog::get()));
}

void TimelineLog::enter(MemoryPhase phase) {
  auto& thread = ThreadLog::get();
  if (thread.phase == phase) return;
  thread.phase = phase;
  thread.after_backward = phase != MemoryPhase::kForward;
  push({.what = TimelineEvent::What::kPhase, .phase = phase});
}

void TimelineLog::allocated(const void* data, Bytes bytes, Bytes level) noexcept {
  const auto running = tape::running();
  auto& thread = ThreadLog::get();
  const auto phase = phase_of(running, thread);
  enter(phase);
  thread.shapeless[thread.next_shapeless++ % thread.shapeless.size()] = data;
  push({.what = TimelineEvent::What::kAllocated,
        .phase = phase,
        .op = running.op,
        .module = running.module,
        .call = running.call,
        .data = data,
        .bytes = bytes,
        .level = level});
  sample_resident_if_due();
}

void TimelineLog::released(const void* data, Bytes bytes, Bytes level) noexcept {
  const auto running = tape::running();
  push({.what = TimelineEvent::What::kFreed,
        .phase = phase_of(running, ThreadLog::get()),
        .call = running.call,
        .data = data,
        .bytes = bytes,
        .level = level});
  sample_resident_if_due();
}

void TimelineLog::sample_resident() noexcept {
  const Bytes now = resident_now();
  if (now > 0) push({.what = TimelineEvent::What::kResident, .bytes = now});
}

void TimelineLog::sample_resident_if_due() noexcept {
  constexpr int64_t kApart = 1'000'000;
  const int64_t now = (std::chrono::steady_clock::now() - begin_).count();
  int64_t last = sampled_ns_.load(std::memory_order_relaxed);
  if (now - last >= kApart && sampled_ns_.compare_exchange_strong(last, now)) sample_resident();
}

// Only an allocation begins another forward: a number read from the loss after backward does not.
void TimelineLog::started() noexcept {
  const auto phase = phase_of(tape::running(), ThreadLog::get());
  if (phase != MemoryPhase::kForward) enter(phase);
}

// At once: they may be dropped next.
void TimelineLog::backward_ended() noexcept { know_gradients(); }

void TimelineLog::made(const void* storage, c10::IntArrayRef sizes) noexcept {
  auto& shapeless = ThreadLog::get().shapeless;
  const auto found = std::find(shapeless.begin(), shapeless.end(), storage);
  if (found == shapeless.end()) return;
  *found = nullptr;
  push({.what = TimelineEvent::What::kShaped, .data = storage}, sizes);
}

void TimelineLog::push(TimelineEvent event, c10::IntArrayRef sizes) noexcept {
  event.thread = TimelineThread::get().number;
  std::lock_guard lock(mutex_);
  if (!is_recording_ || record_.is_full) return;
  event.time_ns = (std::chrono::steady_clock::now() - begin_).count();
  try {
    event.sizes_begin = static_cast<uint32_t>(record_.sizes.size());
    record_.sizes.insert(record_.sizes.end(), sizes.begin(), sizes.end());
    event.sizes_end = static_cast<uint32_t>(record_.sizes.size());
    record_.events.push_back(event);
  } catch (const std::bad_alloc&) {
    record_.is_full = true;
  }
}

}  // namespace refrain
