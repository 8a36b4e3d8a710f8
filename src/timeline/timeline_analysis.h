#pragma once

#include "timeline/timeline_log.h"

namespace refrain {

/// Matches allocations and frees, and classifies each block. Deterministic.
MemoryTimelineReport analyse(const TimelineRecord& record);

}  // namespace refrain
