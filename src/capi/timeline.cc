#include "refrain/timeline.h"

#include <algorithm>
#include <string>

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/breakdown.h"
#include "refrain/error.h"
#include "refrain/selective.h"

using namespace refrain;

struct refrain_timeline_t {
  MemoryTimeline timeline;
};
struct refrain_timeline_report_t {
  MemoryTimelineReport report;
};
struct refrain_phase_scope_t {
  explicit refrain_phase_scope_t(MemoryPhase phase) : scope(phase) {}
  PhaseScope scope;
};
struct refrain_module_scope_t {
  explicit refrain_module_scope_t(const char* name) : scope(name) {}
  ModuleScope scope;
};

namespace {

/// Copies as much of a list as the caller has room for, each element by `convert`.
template <typename To, typename From, typename Convert>
int32_t copy_list(const refrain_timeline_report_t* report, const std::vector<From> MemoryTimelineReport::*list, To* to,
                  size_t count, const char* function, Convert convert) {
  return capi::guarded([&] {
    capi::require(report, function, "report");
    const auto& from = report->report.*list;
    const size_t copied = std::min(count, from.size());
    if (copied > 0) capi::require(to, function, "a list to fill");
    std::transform(from.begin(), from.begin() + static_cast<std::ptrdiff_t>(copied), to, convert);
  });
}

refrain_memory_block_t block_of(const MemoryBlock& block) {
  return {.bytes = block.bytes,
          .kind = static_cast<int32_t>(block.kind),
          .phase = static_cast<int32_t>(block.phase),
          .begin_us = block.begin_us,
          .end_us = block.end_us,
          .op = block.op.data(),
          .module = block.module.data(),
          .op_length = block.op.size(),
          .module_length = block.module.size(),
          .sizes = block.sizes.data(),
          .dimensions = block.sizes.size(),
          .preexisting = block.preexisting ? 1 : 0,
          .outlives_recording = block.outlives_recording ? 1 : 0};
}

template <typename Text>
char* text_of(const refrain_timeline_report_t* report, const char* function, Text text) {
  return capi::made([&] {
    capi::require(report, function, "report");
    return capi::owned_text(text(report->report));
  });
}

}  // namespace

refrain_timeline_t* refrain_timeline_open(void) {
  return capi::made([] { return new refrain_timeline_t; });
}

int32_t refrain_timeline_annotate(refrain_timeline_t* timeline, int32_t kind, void* const* tensors,
                                  const char* const* names, size_t count) {
  return capi::guarded([&] {
    capi::require(timeline, "refrain_timeline_annotate", "timeline");
    if (kind < 0 || kind >= kMemoryKinds)
      throw InvalidArgument("[refrain::MemoryTimeline::annotate] `kind` is " + std::to_string(kind) +
                            ", expected 0 to " + std::to_string(kMemoryKinds - 1));
    const auto given = capi::tensors_of(tensors, count, "refrain_timeline_annotate");
    for (size_t i = 0; i < given.size(); ++i)
      timeline->timeline.annotate(static_cast<MemoryKind>(kind), given[i], names && names[i] ? names[i] : "");
  });
}

refrain_timeline_report_t* refrain_timeline_stop(refrain_timeline_t* timeline) {
  return capi::made([&] {
    capi::require(timeline, "refrain_timeline_stop", "timeline");
    return new refrain_timeline_report_t{timeline->timeline.stop()};
  });
}

void refrain_timeline_close(refrain_timeline_t* timeline) { delete timeline; }

int32_t refrain_timeline_read(const refrain_timeline_report_t* report, refrain_timeline_values_t* values, size_t size) {
  return capi::guarded([&] {
    capi::require(report, "refrain_timeline_read", "report");
    const auto& from = report->report;
    const auto length = [](const auto& list) { return static_cast<int64_t>(list.size()); };
    refrain_timeline_values_t found{.base_bytes = from.base_bytes,
                                    .peak_bytes = from.peak_bytes,
                                    .allocations = from.allocations,
                                    .resident_before = from.resident_before,
                                    .resident_peak = from.resident_peak(),
                                    .peak_us = from.peak_us,
                                    .end_us = from.end_us,
                                    .blocks = length(from.blocks),
                                    .events = length(from.events),
                                    .phases = length(from.phases),
                                    .resident = length(from.resident),
                                    .peak_blocks = length(from.peak_blocks),
                                    .peak_by_kind = {}};
    static_assert(std::size(decltype(found.peak_by_kind){}) == kMemoryKinds);
    std::copy(from.peak_by_kind.begin(), from.peak_by_kind.end(), found.peak_by_kind);
    capi::fill(values, size, &found, sizeof(found), "refrain_timeline_read");
  });
}

int32_t refrain_timeline_blocks(const refrain_timeline_report_t* report, refrain_memory_block_t* blocks, size_t count) {
  return copy_list(report, &MemoryTimelineReport::blocks, blocks, count, "refrain_timeline_blocks", block_of);
}

int32_t refrain_timeline_events(const refrain_timeline_report_t* report, refrain_memory_event_t* events, size_t count) {
  return copy_list(report, &MemoryTimelineReport::events, events, count, "refrain_timeline_events",
                   [](const MemoryEvent& event) {
                     return refrain_memory_event_t{event.time_us, event.block, event.level, event.is_free ? 1 : 0};
                   });
}

int32_t refrain_timeline_phases(const refrain_timeline_report_t* report, refrain_phase_span_t* phases, size_t count) {
  return copy_list(report, &MemoryTimelineReport::phases, phases, count, "refrain_timeline_phases",
                   [](const MemoryPhaseSpan& span) {
                     return refrain_phase_span_t{static_cast<int64_t>(span.phase), span.begin_us, span.end_us};
                   });
}

int32_t refrain_timeline_resident(const refrain_timeline_report_t* report, refrain_resident_sample_t* samples,
                                  size_t count) {
  return copy_list(report, &MemoryTimelineReport::resident, samples, count, "refrain_timeline_resident",
                   [](const ResidentSample& sample) {
                     return refrain_resident_sample_t{sample.time_us, sample.bytes};
                   });
}

int32_t refrain_timeline_peak_blocks(const refrain_timeline_report_t* report, int64_t* blocks, size_t count) {
  return copy_list(report, &MemoryTimelineReport::peak_blocks, blocks, count, "refrain_timeline_peak_blocks",
                   [](int64_t block) { return block; });
}

int32_t refrain_timeline_parts(const refrain_timeline_report_t* report, refrain_memory_parts_t* parts, size_t size) {
  return capi::guarded([&] {
    capi::require(report, "refrain_timeline_parts", "report");
    const auto measured = measured_parts(report->report);
    const refrain_memory_parts_t found{.parameters = measured.parameters,
                                       .gradients = measured.gradients,
                                       .optimizer_states = measured.optimizer_states,
                                       .activations = measured.activations,
                                       .temporaries = measured.temporaries};
    capi::fill(parts, size, &found, sizeof(found), "refrain_timeline_parts");
  });
}

char* refrain_timeline_text(const refrain_timeline_report_t* report, int32_t top) {
  return text_of(report, "refrain_timeline_text", [&](const auto& given) { return given.text(top); });
}

char* refrain_timeline_json(const refrain_timeline_report_t* report) {
  return text_of(report, "refrain_timeline_json", [](const auto& given) { return given.json(); });
}

char* refrain_timeline_trace(const refrain_timeline_report_t* report) {
  return text_of(report, "refrain_timeline_trace", [](const auto& given) { return given.trace(); });
}

void refrain_timeline_report_close(refrain_timeline_report_t* report) { delete report; }

refrain_phase_scope_t* refrain_phase_scope_open(int32_t phase) {
  return capi::made([&] {
    if (phase < 0 || phase > static_cast<int32_t>(MemoryPhase::kOptimizer))
      throw InvalidArgument("[refrain::PhaseScope] `phase` is " + std::to_string(phase) + ", expected 0 to 3");
    return new refrain_phase_scope_t(static_cast<MemoryPhase>(phase));
  });
}

void refrain_phase_scope_close(refrain_phase_scope_t* scope) { delete scope; }

refrain_module_scope_t* refrain_module_scope_open(const char* name) {
  return capi::made([&] {
    capi::require(name, "refrain_module_scope_open", "name");
    return new refrain_module_scope_t(name);
  });
}

void refrain_module_scope_close(refrain_module_scope_t* scope) { delete scope; }
