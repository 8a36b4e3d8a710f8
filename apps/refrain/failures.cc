#include "failures.h"

#include <fmt/format.h>

#include "refrain/torch_error.h"

namespace refrain::cli {
namespace {

std::string both(Bytes bytes) { return fmt::format("{} bytes ({})", bytes, format_bytes(bytes)); }

}  // namespace

std::string allocation_failure_cause(const c10::Error& error) {
  const auto* const refusal = dynamic_cast<const OutOfMemory*>(&error);
  if (!refusal) return first_line(error.msg());
  switch (refusal->reason()) {
    case OutOfMemoryReason::kMaxOverhead:
      return fmt::format("under the limit {} a step recomputes for longer than max_overhead allows; {} would do",
                         both(refusal->limit()), both(refusal->min_limit()));
    case OutOfMemoryReason::kProcessLimit:
      return fmt::format("requested {}, resident {}, limit of the process {}: {} are missing",
                         both(refusal->requested()), both(refusal->in_use()), both(refusal->limit()),
                         both(refusal->missing()));
    case OutOfMemoryReason::kMemoryCap:
      return fmt::format("requested {}, in use and not evictable {}, limit {}: {} are missing",
                         both(refusal->requested()), both(refusal->in_use()), both(refusal->limit()),
                         both(refusal->missing()));
    case OutOfMemoryReason::kMemoryLimit:
      break;
  }
  return fmt::format("requested {}, in use {}, limit {}", both(refusal->requested()), both(refusal->in_use()),
                     both(refusal->limit()));
}

}  // namespace refrain::cli
