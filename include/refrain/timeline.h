#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

/// Every allocation and free of a stretch of training, with what it was for: which step of which part of which module
/// holds the bytes at the peak.
namespace refrain {

/// The phase of the step in which a thread allocates. `kRecompute` overrides `kBackward`, in which it happens.
enum class MemoryPhase : int { kForward, kRecompute, kBackward, kOptimizer };

/// The purpose that allocated bytes turned out to have.
enum class MemoryKind : int {
  kParameter,
  kGradient,  ///< `.grad` of a parameter
  kOptimizerState,
  kBuffer,
  kInput,
  kActivationKept,  ///< made in forward, alive when it ends
  kRecomputed,      ///< made when something is recomputed
  kTemporary,       ///< made and freed within one phase, or by backward for itself
  kWorkspace,       ///< made and freed within one operator, or one node of backward
  kOther,           ///< made before the timeline, and not annotated
};
/// Number of kinds.
inline constexpr int kMemoryKinds = 10;

[[nodiscard]] REFRAIN_API std::string_view name_of(MemoryPhase phase) noexcept;  ///< "forward", ...
[[nodiscard]] REFRAIN_API std::string_view name_of(MemoryKind kind) noexcept;    ///< "activation_kept", ...

/// One allocation. Its times are microseconds since the timeline began.
struct MemoryBlock {
  Bytes bytes = 0;  ///< as requested
  MemoryKind kind = MemoryKind::kOther;
  MemoryPhase phase = MemoryPhase::kForward;  ///< in which it was made
  /// Outermost operator that made it, "aten::linear"; in backward the graph's node, "MmBackward0"; "" outside of both.
  /// Valid until the process ends.
  std::string_view op;
  /// A parameter's, gradient's, state's, buffer's or input's name, else the path of the `ModuleScope`s open when it was
  /// made; for what backward and replay make, when its forward ran. Valid until the process ends.
  std::string_view module;
  std::vector<int64_t> sizes;       ///< of the first tensor seen in it; empty if none was, as mostly in backward
  double begin_us = 0, end_us = 0;  ///< when it was allocated and freed
  bool preexisting = false;         ///< alive when the timeline began: `begin_us` is 0
  bool outlives_recording = false;  ///< alive when it ended: `end_us` is the end
};

/// An allocation or a free.
struct MemoryEvent {
  double time_us = 0;  ///< since the timeline began
  int64_t block = 0;   ///< index in `MemoryTimelineReport::blocks`
  bool is_free = false;
  Bytes level = 0;  ///< bytes allocated afterwards, as `memory_stats().current`
};

/// The resident bytes that the system counted for the process, everything included.
struct ResidentSample {
  double time_us = 0;  ///< since the timeline began
  Bytes bytes = 0;
};

/// A stretch in which the thread that made the timeline stayed in one phase.
struct MemoryPhaseSpan {
  MemoryPhase phase;
  double begin_us, end_us;  ///< since the timeline began
};

/// The result of a timeline.
///
/// The bytes of `blocks` alive at any time, by kind or together, sum to the allocator's level then.
struct REFRAIN_API MemoryTimelineReport {
  std::vector<MemoryBlock> blocks;  ///< those from before first, then in the order of allocation
  std::vector<MemoryEvent> events;  ///< in the order in which the allocator counted them, all threads together
  std::vector<MemoryPhaseSpan> phases;
  /// At the beginning, with allocations and frees a millisecond apart at least, and at the end; empty where the system
  /// does not say.
  std::vector<ResidentSample> resident;
  Bytes resident_before = 0;  ///< resident when tracking was installed, as `memory_stats().resident_before`
  Bytes base_bytes = 0;       ///< allocated when it began
  Bytes peak_bytes = 0;       ///< highest level, to the byte that of the allocator in the same stretch
  double peak_us = 0;         ///< when it was first reached
  double end_us = 0;
  std::array<Bytes, kMemoryKinds> peak_by_kind{};  ///< sums to `peak_bytes`
  std::vector<int64_t> peak_blocks;                ///< indices of the blocks alive at the peak, largest first
  int64_t allocations = 0;
  /// Fraction of the step's time that watching it added; set by who measured it, e.g. `refrain timeline`.
  std::optional<double> measured_overhead;

  /// @return bytes of one kind at the peak.
  Bytes peak_of(MemoryKind kind) const { return peak_by_kind[static_cast<size_t>(kind)]; }
  /// @return highest of `resident`, in bytes; 0 if it is empty.
  [[nodiscard]] Bytes resident_peak() const;
  /// @return highest level of one kind alone, in bytes.
  [[nodiscard]] Bytes highest(MemoryKind kind) const;

  /// Writes phases, kinds at the peak, and the largest blocks alive there. Ends in a line break.
  /// @param top  blocks to show.
  [[nodiscard]] std::string text(int top = 12) const;
  /// Writes the document `timeline` of docs/design/report.md, but for the members that say what ran where.
  [[nodiscard]] std::string json() const;
  /// Writes a trace for chrome://tracing and ui.perfetto.dev: phases, bytes by kind at every event, and a bar for each
  /// block.
  [[nodiscard]] std::string trace() const;
};

/// Records every allocation and free from its construction to `stop`.
///
///     refrain::MemoryTimeline timeline(*model, optimizer);
///     model->forward(x).sum().backward();
///     optimizer.step();
///     std::cout << timeline.stop().text();
///
/// - Phases are detected: a running graph task is backward, a replay or rerun recompute, and code without gradients
///   after a backward the optimizer. `PhaseScope` names the rest, as gradient clipping.
/// - It counts LibTorch's CPU allocator; memory from before `install_memory_tracking` is not in it, as in all of our
///   numbers.
/// - One at a time in a process.
/// - It does not disturb profilers that LibTorch calls for each operator; while one is there from the beginning it
///   costs more.
///
/// Cost while it records:
/// - 0.25 us an operator outside of backward and of `PhaseScope(kOptimizer)`, 0.15 us an allocation or free, when hot.
/// - Of a step: below 2 % of the larger models measured, 3 to 4 % of a GPT of many small operators, up to 8 % of steps
///   of 8 to 20 ms.
/// - 96 bytes an event, none of them from LibTorch's allocator.
/// Threads: sees all of them. `phases` are those of the thread that made it.
class REFRAIN_API MemoryTimeline {
 public:
  /// Begins to record.
  /// @throws InvalidArgument  if another one is recording.
  MemoryTimeline();

  /// Also knows the module's parameters, gradients and buffers by name.
  /// @param module  outlives the recording; its tensors are looked at now, when a backward ends, and in `stop`.
  explicit MemoryTimeline(const torch::nn::Module& module);

  /// Also knows the states of LibTorch's own optimizers. Of others: what is made in the optimizer's phase and stays.
  /// @param module, optimizer  outlive the recording; their tensors are looked at now, when a backward ends, and in
  ///                           `stop`.
  MemoryTimeline(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer);
  ~MemoryTimeline();
  MemoryTimeline(const MemoryTimeline&) = delete;
  MemoryTimeline& operator=(const MemoryTimeline&) = delete;

  /// Says what tensors alive now are for. What was known of them before is kept.
  /// @param name  shown as their module.
  void annotate(MemoryKind kind, at::ArrayRef<at::Tensor> tensors, std::string_view name = "");

  /// Ends the recording.
  /// @return what it saw.
  /// @throws InvalidArgument   if it has ended.
  /// @throws EnvironmentError  if the system had no memory for more events.
  /// Cost: about 1 us an event.
  MemoryTimelineReport stop();

 private:
  MemoryTimeline(const torch::nn::Module* module, const torch::optim::Optimizer* optimizer);
  bool is_recording_ = false;
};

/// Puts code on this thread outside of backward and recomputation into a phase while alive. Nests.
///
/// In `kOptimizer` operators are not named: those of an optimizer are many and small, and naming them would be most of
/// a timeline's cost.
/// Cost: about 50 ns. Threads: ends on the thread that made it.
class REFRAIN_API PhaseScope {
 public:
  [[nodiscard]] explicit PhaseScope(MemoryPhase phase);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  std::optional<MemoryPhase> before_;
  struct Announced;
  std::unique_ptr<Announced> announced_;
};

}  // namespace refrain
