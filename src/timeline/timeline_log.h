#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "memory/tracking_allocator.h"
#include "refrain/timeline.h"
#include "intercept/running.h"

namespace refrain {

/// One line of the log.
struct TimelineEvent {
  enum class What : uint8_t {
    kAllocated,
    kFreed,
    kShaped,    ///< a tensor of these sizes lies in `data`
    kKnown,     ///< `data` holds what `kind` says, under the name `module`
    kPhase,     ///< the thread comes into this phase
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
  Bytes level = 0;                            ///< kAllocated, kFreed: afterwards
  uint32_t sizes_begin = 0, sizes_end = 0;  ///< kShaped: in `TimelineRecord::sizes`
};

struct TimelineRecord {
  std::vector<TimelineEvent> events;
  std::vector<int64_t> sizes;
  Bytes base = 0;
  Bytes resident_before = 0;
  int64_t end_ns = 0;
  uint32_t thread = 0;   ///< that began it
  bool is_full = false;  ///< the system had no memory for more events
};

/// Tensors with their names.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// What a timeline asks for tensors that come and go.
struct TimelineSources {
  NamedTensors parameters, buffers;
  const torch::optim::Optimizer* optimizer = nullptr;
};

/// Writes down what allocator and operators do, while a timeline records. Lives until the process ends.
///
/// Two locks, in this order: the allocator's, under which it is called for allocations, and its own, held for a push.
class TimelineLog final : public TrackingAllocator::Observer, public tape::RunningWatch {
 public:
  static TimelineLog& get();

  /// @return whether it was not recording already.
  bool start(TimelineSources sources);
  TimelineRecord stop();
  void annotate(MemoryKind kind, std::string_view name, const at::Tensor& tensor);
  /// This thread's phase, forced from outside, has changed.
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
  /// If a millisecond has passed since the last: a look costs 4 us.
  void sample_resident_if_due() noexcept;

  std::mutex mutex_;  // guards record_ and is_recording_
  TimelineRecord record_;
  bool is_recording_ = false;
  TimelineSources sources_;  // of the recording; constant while it runs
  std::chrono::steady_clock::time_point begin_;
  std::atomic<int64_t> sampled_ns_{0};
};

/// What `PhaseScope` says on this thread.
std::optional<MemoryPhase>& forced_phase();

}  // namespace refrain
