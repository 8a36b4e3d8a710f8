#include "tape/invariants.h"

#include <cstdio>
#include <cstdlib>

#include "tape/slots.h"
#include "tape/tape.h"

namespace refrain::tape {

std::string broken_invariant(const Value& value) {
  const auto* const slot = value.slots;
  if (value.refs < 0) return "it was released too often";
  if (value.refs == 0) return "";  // dies when this lock ends
  if (value.holds < 0 || value.pins < 0 || value.locks < 0 || value.writers < 0 || value.op_refs < 0 ||
      value.needed < 0)
    return "a count is negative";
  if (value.op_refs > value.refs) return "more operators refer to it than references there are";
  if (value.unknown && value.producer) return "no operator has written it, and it has a producer";
  if (value.producer && value.producer->outs[value.out].value != &value)
    return "its producer does not know it as a result";
  if (value.key && value.is_overwritten()) return "it is found by a storage that has other bytes";
  if (value.is_evicted() && (!value.producer || value.unknown)) return "it is evicted, and nothing recomputes it";
  if (value.is_in_store() && !value.offloaded) return "it is in a store, and in none";
  if (value.is_lost() && value.held) return "its bytes are lost and held";
  if (slot && slot->value != &value) return "a slot of it means another value";
  return "";
}

#ifndef NDEBUG

// A few at the end of each lock, in turn: a program of thousands of values takes as many locks.
void TapeLock::check_some_values() {
  static size_t cursor = 0;  // guarded by the lock
  tape_.map.visit_some(cursor, 16, [](const Value* value) {
    const auto broken = broken_invariant(*value);
    if (broken.empty()) return;
    std::fprintf(stderr, "refrain: a value of %zu bytes is in a state that cannot be: %s\n", value->nbytes,
                 broken.c_str());
    std::abort();
  });
}

#endif

}  // namespace refrain::tape
