#include "refrain/budget.h"

#include <fmt/format.h>

#include "memory/process_memory.h"
#include "refrain/error.h"

namespace refrain {
namespace {

Bytes checked(Bytes limit, const char* of) {
  if (limit >= 0) return limit;
  throw InvalidArgument(fmt::format(
      "[refrain::Budget] `limit` is {}, expected 0 or more bytes; it is an absolute level, like `memory_stats().{}`",
      limit, of));
}

}  // namespace

Budget Budget::bytes(Bytes limit) { return {Kind::kBytes, checked(limit, "current"), 0.0}; }

Budget Budget::fraction(double part) {
  if (part >= 0.0 && part <= 1.0) return {Kind::kFraction, 0, part};
  throw InvalidArgument(fmt::format(
      "[refrain::Budget] `fraction` is {}, expected 0.0 (lowest peak) to 1.0 (peak of the baseline); for bytes use Budget::bytes",
      part));
}

Budget Budget::process(Bytes limit) { return {Kind::kProcess, checked(limit, "resident"), 0.0}; }

Budget Budget::available(double part) {
  if (!(part > 0.0 && part <= 1.0))
    throw InvalidArgument(fmt::format("[refrain::Budget] `part` is {}, expected more than 0 and at most 1", part));
  return {Kind::kProcess, resident_now() + static_cast<Bytes>(part * static_cast<double>(available_memory().bytes)),
          0.0};
}

}  // namespace refrain
