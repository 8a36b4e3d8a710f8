#pragma once

#include "timeline/timeline_log.h"

namespace refrain {

/// Puts allocations and frees together, and says what each block was for. Deterministic.
MemoryTimelineReport analyse(const TimelineRecord& record);

}  // namespace refrain
