#pragma once

#include <stddef.h>
#include <stdint.h>

#include "refrain/api.h"

/// The part of refrain/c_api.h for refrain/timeline.h and refrain/breakdown.h; include that. Its rules hold here, too.
#ifdef __cplusplus
extern "C" {
#endif
// NOLINTBEGIN(modernize-use-using): this is C

typedef struct refrain_timeline_t refrain_timeline_t;
typedef struct refrain_timeline_report_t refrain_timeline_report_t;
typedef struct refrain_phase_scope_t refrain_phase_scope_t;
typedef struct refrain_module_scope_t refrain_module_scope_t;

/// `MemoryTimelineReport`: its numbers, and how many elements its lists have. Kinds and phases are `MemoryKind` and
/// `MemoryPhase`.
typedef struct refrain_timeline_values_t {
  int64_t base_bytes, peak_bytes, allocations, resident_before, resident_peak;
  double peak_us, end_us;
  int64_t blocks, events, phases, resident, peak_blocks;
  int64_t peak_by_kind[10];
} refrain_timeline_values_t;

/// `MemoryBlock`. Names are valid until the process ends, `sizes` as long as the report.
typedef struct refrain_memory_block_t {
  int64_t bytes;
  int32_t kind, phase;
  double begin_us, end_us;
  const char *op, *module;  ///< not terminated by a null
  size_t op_length, module_length;
  const int64_t* sizes;
  size_t dimensions;
  int32_t preexisting, outlives_recording;
} refrain_memory_block_t;

/// `MemoryEvent`.
typedef struct refrain_memory_event_t {
  double time_us;
  int64_t block, level;
  int64_t is_free;
} refrain_memory_event_t;

/// `MemoryPhaseSpan`.
typedef struct refrain_phase_span_t {
  int64_t phase;
  double begin_us, end_us;
} refrain_phase_span_t;

/// `ResidentSample`.
typedef struct refrain_resident_sample_t {
  double time_us;
  int64_t bytes;
} refrain_resident_sample_t;

/// `MemoryParts`, in its order.
typedef struct refrain_memory_parts_t {
  int64_t parameters, gradients, optimizer_states, activations, temporaries;
} refrain_memory_parts_t;

/// Begins a `MemoryTimeline`; the caller says by `refrain_timeline_annotate` what tensors are.
REFRAIN_API refrain_timeline_t* refrain_timeline_open(void);
/// @param names  null, or one for each tensor.
REFRAIN_API int32_t refrain_timeline_annotate(refrain_timeline_t* timeline, int32_t kind, void* const* tensors,
                                              const char* const* names, size_t count);
/// Ends the recording. The handle of the timeline is closed all the same.
REFRAIN_API refrain_timeline_report_t* refrain_timeline_stop(refrain_timeline_t* timeline);
REFRAIN_API void refrain_timeline_close(refrain_timeline_t* timeline);
REFRAIN_API int32_t refrain_timeline_read(const refrain_timeline_report_t* report, refrain_timeline_values_t* values,
                                          size_t size);
/// Copies the first `count` elements of a list, or all if it has fewer.
REFRAIN_API int32_t refrain_timeline_blocks(const refrain_timeline_report_t* report, refrain_memory_block_t* blocks,
                                            size_t count);
REFRAIN_API int32_t refrain_timeline_events(const refrain_timeline_report_t* report, refrain_memory_event_t* events,
                                            size_t count);
REFRAIN_API int32_t refrain_timeline_phases(const refrain_timeline_report_t* report, refrain_phase_span_t* phases,
                                            size_t count);
REFRAIN_API int32_t refrain_timeline_resident(const refrain_timeline_report_t* report,
                                              refrain_resident_sample_t* samples, size_t count);
REFRAIN_API int32_t refrain_timeline_peak_blocks(const refrain_timeline_report_t* report, int64_t* blocks,
                                                 size_t count);
/// `measured_parts`.
REFRAIN_API int32_t refrain_timeline_parts(const refrain_timeline_report_t* report, refrain_memory_parts_t* parts,
                                           size_t size);
/// `MemoryTimelineReport::text`, `json` and `trace`.
REFRAIN_API char* refrain_timeline_text(const refrain_timeline_report_t* report, int32_t top);
REFRAIN_API char* refrain_timeline_json(const refrain_timeline_report_t* report);
REFRAIN_API char* refrain_timeline_trace(const refrain_timeline_report_t* report);
REFRAIN_API void refrain_timeline_report_close(refrain_timeline_report_t* report);

/// Opens a `PhaseScope`. @param phase  a `MemoryPhase`, 0 to 3.
REFRAIN_API refrain_phase_scope_t* refrain_phase_scope_open(int32_t phase);
REFRAIN_API void refrain_phase_scope_close(refrain_phase_scope_t* scope);
/// Opens a `ModuleScope`. Does not wait; the last one opened is closed first.
REFRAIN_API refrain_module_scope_t* refrain_module_scope_open(const char* name);
REFRAIN_API void refrain_module_scope_close(refrain_module_scope_t* scope);

// NOLINTEND(modernize-use-using)
#ifdef __cplusplus
}  // extern "C"
#endif
