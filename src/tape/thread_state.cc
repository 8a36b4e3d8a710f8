#include "tape/thread_state.h"

#include <algorithm>

#include "tape/slots.h"

namespace refrain::tape {

ThreadState::~ThreadState() {
  if (unsettled.empty() && unknown_slots.empty()) return;
  TapeLock lock;
  settle(lock, *this);
}

thread_local ThreadState* ThreadState::current = nullptr;

ThreadState& ThreadState::make() {
  // A thread's last tensors may die after its guard: they get a state that is never destroyed.
  struct Guard {
    ~Guard() { delete std::exchange(current, nullptr); }
  };
  current = new ThreadState;
  static thread_local Guard guard;
  (void)guard;
  return *current;
}

void ThreadState::opened(const OpenScope& scope) {
  open.push_back(scope);
  follow_open();
}

bool ThreadState::closed(const void* owner) {
  const auto others = std::erase_if(open, [&](const auto& scope) { return scope.owner == owner; });
  follow_open();
  return others > 0;
}

void ThreadState::follow_open() {
  region = nullptr;
  saver = nullptr;
  trace = nullptr;
  draws = nullptr;
  open_reruns = 0;
  for (const auto& scope : open) {
    if (scope.region) {
      region = scope.region;
      saver = nullptr;  // tensors saved in a region belong to the region
    }
    if (scope.saver) saver = scope.saver;
    if (scope.trace) trace = scope.trace;
    if (scope.draws) draws = scope.draws;
    open_reruns += scope.is_rerun;
  }
}

// --- settling ---------------------------------------------------------------------------------------------------------

void settle_writes(TapeLock& lock, ThreadState& thread) {
  for (size_t i = 0; i < thread.unsettled.size(); ++i) {
    auto [before, after, holds] = thread.unsettled[i];
    for (auto* slot = before->slots; slot;) {
      auto* next = slot->in_value.next;
      if (!slot->version_bumped()) {
        // Autograd alone would read the new bytes; so does the slot.
        slot->detach(lock);
        slot->attach(lock, after, needs_hold(lock, after, slot->region));
      }
      slot = next;
    }
    if (after->producer && after->counter.enabled()) after->version = after->counter.current_version();
    if (holds) unhold(lock, after);
    lock.release(before);
    lock.release(after);
  }
  thread.unsettled.clear();
}

void settle_unknown(TapeLock& lock, ThreadState& thread) {
  for (auto* value : thread.unknown_slots) {
    if (value->unknown && value->slots) make_leaf(lock, value);
    unhold(lock, value);
    lock.release(value);
  }
  thread.unknown_slots.clear();
}

void settle(TapeLock& lock, ThreadState& thread) {
  settle_writes(lock, thread);
  settle_unknown(lock, thread);
}

}  // namespace refrain::tape
