#pragma once

#include <cstdint>

#include "plan/coarse.h"

namespace refrain::plan {

/// Bytes that are resident while the operator at `place` runs, and in the gap after it, whatever a schedule does.
int64_t must_be_there(const Problem& problem, OpId place);

}  // namespace refrain::plan
