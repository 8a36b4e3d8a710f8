#include "evict/open_cap.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include "evict/cap_state.h"
#include "evict/composite_ops.h"
#include "evict/eviction_hooks.h"
#include "evict/rest.h"
#include "evict/securing.h"
#include "intercept/key.h"
#include "memory/block.h"
#include "replay/run_again.h"
#include "tape/cap.h"
#include "tape/engine.h"
#include "tape/region.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

// What cannot be recomputed stays evicted.
void try_bring_back_one(Value* value) {
  try {
    bring_back({value});
  } catch (...) {
  }
}

}  // namespace

void open_cap(bool always) {
  install();
  add_composite_ops();
  Block::owner_died.store(&memory_died);
  install_cap_hooks();
  wake();
  {
    TapeLock lock;
    cap().always_recording += always;
    if (cap().open++ == 0) {
      cap().history.clear();
      cap().step = {};
      cap().passes.clear();
      cap().last_operators_ns = 0;
      auto& counters = cap().counters;
      counters.evictions = counters.evicted_bytes = counters.recomputes = counters.recompute_ns = 0;
      counters.unrecorded_steps = counters.rests = 0;
      auto* region = new Region;
      region->cap = true;
      region->refs = 1;
      region->top = region;
      ++lock.tape().stats.live_regions;
      cap().region = region;
      lock.tape().cap.store(region);
      rest_from_start(lock);
    }
  }
  set_tape_included(true);
}

void close_cap(bool always) {
  std::vector<Value*> left;
  {
    TapeLock lock;
    cap().always_recording -= always;
    if (cap().open > 1) {
      --cap().open;
      return;
    }
    collect_gone(lock);
    cap().closing = true;
    left = cap().evicted;
    for (auto* value : left) retain(value);
  }
  try {
    bring_back(left);
  } catch (...) {
    // one by one: even without the limit all of them may not fit
    for (auto* value : left) try_bring_back_one(value);
  }
  release_all(left);
  {
    TapeLock lock;
    settle(lock, ThreadState::get());
    cap().open = 0;
    cap().closing = false;
    lock.tape().cap.store(nullptr);
    lock.tape().rests.store(false);
    forget_recorded(lock);
    cap().region->active = false;
    lock.release(std::exchange(cap().region, nullptr));
  }
  leave_dispatch();
}

bool join_cap() {
  if (!is_cap_open() || c10::impl::tls_is_dispatch_key_included(kTapeKey)) return false;
  set_tape_included(true);
  return true;
}

void leave_cap() {
  auto& thread = ThreadState::get();
  TapeLock lock;
  settle(lock, thread);
  set_tape_included(false);
}

}  // namespace refrain::tape
