#include "refrain/timeline.h"

#include <torch/nn/module.h>

#include "refrain/error.h"
#include "timeline/timeline_analysis.h"
#include "timeline/timeline_log.h"

namespace refrain {

MemoryTimeline::MemoryTimeline() : MemoryTimeline(nullptr, nullptr) {}

MemoryTimeline::MemoryTimeline(const torch::nn::Module& module) : MemoryTimeline(&module, nullptr) {}

MemoryTimeline::MemoryTimeline(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer)
    : MemoryTimeline(&module, &optimizer) {}

MemoryTimeline::MemoryTimeline(const torch::nn::Module* module, const torch::optim::Optimizer* optimizer) {
  TimelineSources sources;
  sources.optimizer = optimizer;
  if (module) {
    for (const auto& item : module->named_parameters()) sources.parameters.emplace_back(item.key(), item.value());
    for (const auto& item : module->named_buffers()) sources.buffers.emplace_back(item.key(), item.value());
  }
  if (!TimelineLog::get().start(std::move(sources)))
    throw InvalidArgument(
        "[refrain::MemoryTimeline] another timeline is recording; expected one at a time in a process. Stop it first.");
  is_recording_ = true;
}

MemoryTimeline::~MemoryTimeline() {
  if (is_recording_) TimelineLog::get().stop();
}

void MemoryTimeline::annotate(MemoryKind kind, at::ArrayRef<at::Tensor> tensors, std::string_view name) {
  for (const auto& tensor : tensors) TimelineLog::get().annotate(kind, name, tensor);
}

MemoryTimelineReport MemoryTimeline::stop() {
  if (!is_recording_)
    throw InvalidArgument("[refrain::MemoryTimeline::stop] this timeline has been stopped; make another one.");
  is_recording_ = false;
  const auto record = TimelineLog::get().stop();
  if (record.is_full)
    throw EnvironmentError(
        "[refrain::MemoryTimeline::stop] the system had no memory for more events; record a shorter stretch.");
  return analyse(record);
}

struct PhaseScope::Announced {
  tape::AnnounceScope scope;
};

PhaseScope::PhaseScope(MemoryPhase phase) : before_(std::exchange(forced_phase(), phase)) {
  TimelineLog::get().phase_forced();
  announced_.reset(new Announced{tape::AnnounceScope(phase != MemoryPhase::kOptimizer)});
}

PhaseScope::~PhaseScope() { forced_phase() = before_; }

}  // namespace refrain
