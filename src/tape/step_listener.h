#pragma once

#include <ATen/core/stack.h>

#include "tape/tape.h"

namespace refrain::tape {

/// Observes the operators of a thread under a cap. One at a time in the process.
///
/// For each operator: `before`, `begins`, `recorded` if the cap's tape has it, `ends`; if it throws, no `ends`.
/// `evicted`, `replayed` and `dropped` are called in between.
class StepListener {
 public:
  /// Called without the lock; may run operators and evict.
  virtual void before(const OpTraits& traits, const torch::jit::Stack& stack) = 0;
  /// @param operands  values that it reads or writes, resident by now; one may be listed twice.
  virtual void begins(TapeLock& lock, const OpTraits& traits, c10::ArrayRef<Value*> operands) = 0;
  virtual void recorded(TapeLock& lock, const Op& op) = 0;
  virtual void ends(TapeLock& lock) = 0;
  /// A backward has ended. No lock is held.
  virtual void step_ended() = 0;
  /// `trace_path` has changed. No lock is held.
  virtual void scope_changed() {}
  /// Whether steps may run unrecorded for now, as there is nothing to do in them. Asked when a step has ended.
  virtual bool may_rest() const { return false; }
  /// Operators are recorded again, from the middle of a step on. Threads: any.
  virtual void woke() {}

  virtual void evicted(TapeLock&, Value&) {}
  /// @param consumed  the value that it overwrote without a copy, or null.
  virtual void replayed(TapeLock&, const Op&, Value* /*consumed*/) {}
  /// A pass frees a value that it made and no longer reads.
  virtual void dropped(TapeLock&, Value&) {}

 protected:
  ~StepListener() = default;
};

/// The listener of any thread, or null. For `step_listener`.
extern std::atomic<StepListener*> current_listener;
bool listens_here();
/// Ends the open scope, if any: in a forked child, which has no thread that would.
void forget_listener();

/// Returns this thread's listener; null on threads that set none. Throws nothing. Cost: a load where there is none.
inline StepListener* step_listener() {
  auto* listener = current_listener.load(std::memory_order_acquire);
  return listener && listens_here() ? listener : nullptr;
}
/// Reports a change of `trace_path`. Cost: as `step_listener`.
inline void tell_scope_changed() {
  if (auto* listener = step_listener()) listener->scope_changed();
}

/// Sets the listener for this thread while alive. @throws InvalidArgument if there is one in the process.
class ListenerScope {
 public:
  explicit ListenerScope(StepListener& listener);
  ~ListenerScope();
  ListenerScope(const ListenerScope&) = delete;
  ListenerScope& operator=(const ListenerScope&) = delete;

 private:
  uint64_t number_;
};

}  // namespace refrain::tape
