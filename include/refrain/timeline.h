#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

/// What a thread is doing when it allocates. `kRecompute` goes before `kBackward`, in which it happens.
enum class MemoryPhase : int { kForward, kRecompute, kBackward, kOptimizer };

/// What allocated bytes turned out to be for.
enum class MemoryKind : int {
  kParameter,
  kGradient,        ///< `.grad` of a parameter
  kOptimizerState,
  kBuffer,
  kInput,
  kActivationKept,  ///< made in forward, alive when it ends
  kRecomputed,      ///< made when something is computed again
  kTemporary,       ///< made and freed within one phase, or by backward for itself
  kWorkspace,       ///< made and freed within one operator, or one node of backward
  kOther,           ///< from before the timeline, and told to it by nobody
};
inline constexpr int kMemoryKinds = 10;

std::string_view name_of(MemoryPhase phase) noexcept;  ///< "forward", ...
std::string_view name_of(MemoryKind kind) noexcept;    ///< "activation_kept", ...

/// One allocation. Its times are microseconds since the timeline began.
struct MemoryBlock {
  Bytes bytes = 0;  ///< as requested
  MemoryKind kind = MemoryKind::kOther;
  MemoryPhase phase = MemoryPhase::kForward;  ///< in which it was made
  /// Outermost operator that made it, "aten::linear"; in backward the graph's node, "MmBackward0"; "" outside of both.
  std::string_view op;
  /// A parameter's, gradient's, state's, buffer's or input's name, else the path of the `ModuleScope`s open when it was made;
  /// for what backward and replay make, when its forward ran. Both are valid until the process ends.
  std::string_view module;
  std::vector<int64_t> sizes;  ///< of the first tensor seen in it; empty if none was, as for most of what backward makes
  double begin_us = 0, end_us = 0;
  bool preexisting = false;  ///< alive when the timeline began: `begin_us` is 0
  bool outlives_recording = false;        ///< alive when it ended: `end_us` is the end
};

/// A block comes or goes.
struct MemoryEvent {
  double time_us = 0;
  int64_t block = 0;  ///< index in `MemoryTimelineReport::blocks`
  bool is_free = false;
  Bytes level = 0;  ///< bytes allocated afterwards, as `memory_stats().current`
};

/// What the system counted for the process, everything included.
struct ResidentSample {
  double time_us = 0;
  Bytes bytes = 0;
};

/// A stretch in which the thread that made the timeline stayed in one phase.
struct MemoryPhaseSpan {
  MemoryPhase phase;
  double begin_us, end_us;
};

/// What a timeline saw. The bytes of `blocks` alive at any time, by kind or together, sum to the allocator's level then.
struct MemoryTimelineReport {
  std::vector<MemoryBlock> blocks;  ///< those from before first, then in the order of allocation
  std::vector<MemoryEvent> events;  ///< in the order in which the allocator counted them, all threads together
  std::vector<MemoryPhaseSpan> phases;
  /// At the beginning, with allocations and frees a millisecond apart at least, and at the end; empty where the system does not say.
  std::vector<ResidentSample> resident;
  Bytes resident_before = 0;  ///< resident when tracking was installed, as `memory_stats().resident_before`
  Bytes base_bytes = 0;  ///< allocated when it began
  Bytes peak_bytes = 0;  ///< highest level, to the byte that of the allocator in the same stretch
  double peak_us = 0;    ///< when it was first reached
  double end_us = 0;
  std::array<Bytes, kMemoryKinds> peak_by_kind{};  ///< sums to `peak_bytes`
  std::vector<int64_t> peak_blocks;  ///< indices of the blocks alive at the peak, largest first
  int64_t allocations = 0;
  /// Fraction of the step's time that watching it added; set by who measured it, e.g. `refrain timeline`.
  std::optional<double> measured_overhead;

  Bytes peak_of(MemoryKind kind) const { return peak_by_kind[static_cast<size_t>(kind)]; }
  Bytes resident_peak() const;  ///< highest of `resident`; 0 if it is empty
  /// Highest level of one kind alone.
  Bytes highest(MemoryKind kind) const;

  /// Phases, kinds at the peak, and the largest blocks alive there. Ends in a line break.
  /// @param top  blocks to show.
  std::string text(int top = 12) const;
  /// The document `timeline` of docs/design/report.md, but for the members that say what ran where.
  std::string json() const;
  /// For chrome://tracing and ui.perfetto.dev: phases, bytes by kind at every event, and a bar for each block.
  std::string trace() const;
};

/// Records from its construction to `stop`.
///
///     refrain::MemoryTimeline timeline(*model, optimizer);
///     model->forward(x).sum().backward();
///     optimizer.step();
///     std::cout << timeline.stop().text();
///
/// Phases are found: a running graph task is backward, a replay or rerun recompute, and code without gradients after a
/// backward the optimizer. `PhaseScope` names what is left, as gradient clipping. Counts LibTorch's CPU allocator; memory
/// from before `install_memory_tracking` is not in it, as in all of our numbers. One at a time in a process.
/// Cost while it records: 0.25 us an operator outside of backward and of `PhaseScope(kOptimizer)`, 0.15 us an allocation or
/// free, when hot. Of a step: below 2 % of the larger models measured, 3 to 4 % of a GPT of many small operators, up to 8 % of
/// steps of 8 to 20 ms. 96 bytes an event, none of them from LibTorch's allocator.
/// Does not disturb profilers that LibTorch calls for each operator; while one is there from the beginning it costs more.
/// Threads: sees all of them. `phases` are those of the thread that made it.
class MemoryTimeline {
 public:
  /// @throws InvalidArgument  if another one is recording.
  MemoryTimeline();
  /// Knows the module's parameters, gradients and buffers by name.
  /// @param module, optimizer  outlive the recording; their tensors are looked at now, when a backward ends, and in `stop`.
  explicit MemoryTimeline(const torch::nn::Module& module);
  /// Knows also the states of LibTorch's own optimizers. Of others: what is made in the optimizer's phase and stays.
  MemoryTimeline(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer);
  ~MemoryTimeline();
  MemoryTimeline(const MemoryTimeline&) = delete;
  MemoryTimeline& operator=(const MemoryTimeline&) = delete;

  /// Says what tensors alive now are for. What was known of them stays.
  /// @param name  shown as their module.
  void annotate(MemoryKind kind, at::ArrayRef<at::Tensor> tensors, std::string_view name = "");

  /// Ends the recording. @throws InvalidArgument  if it has ended. Cost: about 1 us an event.
  MemoryTimelineReport stop();

 private:
  MemoryTimeline(const torch::nn::Module* module, const torch::optim::Optimizer* optimizer);
  bool is_recording_ = false;
};

/// While it lives, code on this thread outside of backward and recomputation is in `phase`. Nests. In `kOptimizer` operators
/// are not named: those of an optimizer are many and small, and naming them would be most of a timeline's cost.
/// Threads: ends on the thread that made it. Cost: about 50 ns.
class PhaseScope {
 public:
  explicit PhaseScope(MemoryPhase phase);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  std::optional<MemoryPhase> before_;
  struct Announced;
  std::unique_ptr<Announced> announced_;
};

}  // namespace refrain
