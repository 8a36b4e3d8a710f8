#include "base/ordered_mutex.h"

#ifndef NDEBUG

#include <cstdio>
#include <cstdlib>

namespace refrain {
namespace {

thread_local uint32_t held = 0;  ///< a bit for each `LockOrder`

}  // namespace

void OrderedMutex::check() const {
  const auto place = static_cast<unsigned>(order_);
  if ((held >> place) == 0) return;
  std::fprintf(stderr, "refrain: a thread that holds the locks 0x%x takes lock %u (LockOrder): out of order\n", held,
               place);
  std::abort();
}

void OrderedMutex::note(bool is_held) const {
  const uint32_t bit = uint32_t{1} << static_cast<unsigned>(order_);
  held = is_held ? held | bit : held & ~bit;
}

}  // namespace refrain

#endif
