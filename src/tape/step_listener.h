#pragma once

#include <ATen/core/stack.h>

#include "tape/tape.h"

namespace refrain::tape {

/// Follows the operators of a thread under a cap. One at a time in the process.
///
/// For each operator: `before`, `begins`, `recorded` if the cap's tape has it, `ends`; if it throws, no `ends`. `evicted`, `replayed` and `dropped` come in between.
class StepListener {
 public:
  /// No lock is held; may run operators and evict.
  virtual void before(const OpTraits& traits, const torch::jit::Stack& stack) = 0;
  /// @param operands  values that it reads or writes, with bytes by now; one may be there twice.
  virtual void begins(TapeLock& lock, const OpTraits& traits, c10::ArrayRef<Value*> operands) = 0;
  virtual void recorded(TapeLock& lock, const Op& op) = 0;
  virtual void ends(TapeLock& lock) = 0;
  /// A backward has ended. No lock is held.
  virtual void step_ended() = 0;
  /// `trace_path` is another one now. No lock is held.
  virtual void scope_changed() {}

  virtual void evicted(TapeLock&, Value&) {}
  /// @param consumed  what it overwrote without a copy, or null.
  virtual void replayed(TapeLock&, const Op&, Value* /*consumed*/) {}
  /// What a pass made, and nothing in it reads any more.
  virtual void dropped(TapeLock&, Value&) {}

 protected:
  ~StepListener() = default;
};

/// Any thread's, or null. For `step_listener`.
extern std::atomic<StepListener*> current_listener;
bool listens_here();
/// Ends the scope that is open, if any: in a forked child, where nobody else can.
void forget_listener();

/// Null on other threads than the one that set it. Throws nothing. Cost: a load where there is none.
inline StepListener* step_listener() {
  auto* listener = current_listener.load(std::memory_order_acquire);
  return listener && listens_here() ? listener : nullptr;
}
/// To be called where `trace_path` has changed. Cost: as `step_listener`.
inline void tell_scope_changed() {
  if (auto* listener = step_listener()) listener->scope_changed();
}

/// Sets it for this thread while it lives. @throws InvalidArgument if there is one.
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
