#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/ordered_mutex.h"
#include "intercept/running.h"
#include "memory/tracking_allocator.h"
#include "refrain/timeline.h"

namespace refrain {

/// One line of the log.
struct TimelineEvent {
  enum class What : uint8_t {
    kAllocated,
    kFreed,
    kShaped,    ///< `data` is a tensor of these sizes
    kKnown,     ///< `data` is of this `kind`, with the name `module`
    kPhase,     ///< the thread enters this phase
    kResident,  ///< `bytes` of the process are resident
  };
  What what;
  MemoryPhase phase = MemoryPhase::kForward;
  MemoryKind kind = MemoryKind::kOther;
  uint32_t thread = 0;
  uint32_t op = 0, module = 0;  ///< interned
  uint64_t call = 0;            ///< of the operator, as in `tape::Running`
  int64_t time_ns = 0;
  const void* data = nullptr;
  Bytes bytes = 0;
  Bytes level = 0;                          ///< kAllocated, kFreed: afterwards
  uint32_t sizes_begin = 0, sizes_end = 0;  ///< kShaped: in `TimelineRecord::sizes`
};

struct TimelineRecord {
  std::vector<TimelineEvent> events;
  std::vector<int64_t> sizes;
  Bytes base = 0;
  Bytes resident_before = 0;
  int64_t end_ns = 0;
  uint32_t thread = 0;   ///< the one that began it
  bool is_full = false;  ///< the system had no memory for more events
};

/// Tensors with their names.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Sources of names for tensors.
struct TimelineSources {
  NamedTensors parameters, buffers;
  const torch::optim::Optimizer* optimizer = nullptr;
};

/// Logs allocations and operators while a timeline records. Lives until the process ends.
///
/// Two locks, in this order: the allocator's, under which it is called for allocations, and its own, held for a push.
class TimelineLog final : public TrackingAllocator::Observer, public tape::RunningWatch {
 public:
  static TimelineLog& get();

  /// Starts recording. @return false if it is recording already.
  bool start(TimelineSources sources);
  TimelineRecord stop();
  void annotate(MemoryKind kind, std::string_view name, const at::Tensor& tensor);
  /// Logs a change of this thread's phase, forced from outside.
  void phase_forced();

  void allocated(const void* data, Bytes bytes, Bytes level) noexcept override;
  void released(const void* data, Bytes bytes, Bytes level) noexcept override;
  void started() noexcept override;
  void backward_ended() noexcept override;
  void made(const void* storage, c10::IntArrayRef sizes) noexcept override;

 private:
  TimelineLog();
  void enter(MemoryPhase phase);
  void know_gradients();
  void know_all();
  void push(TimelineEvent event, c10::IntArrayRef sizes = {}) noexcept;
  void sample_resident() noexcept;
  /// Samples if a millisecond has passed since the last time: a sample costs 4 us.
  void sample_resident_if_due() noexcept;

  OrderedMutex mutex_{LockOrder::kTimeline};  // guards record_ and is_recording_
  TimelineRecord record_;
  bool is_recording_ = false;
  TimelineSources sources_;  // of the recording; constant while it runs
  std::chrono::steady_clock::time_point begin_;
  std::atomic<int64_t> sampled_ns_{0};
};

/// Phase set by `PhaseScope` on this thread.
std::optional<MemoryPhase>& forced_phase();

}  // namespace refrain
