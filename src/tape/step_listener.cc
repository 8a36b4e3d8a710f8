#include "tape/step_listener.h"

#include "base/fork.h"
#include "intercept/module_scope.h"
#include "refrain/error.h"
#include "tape/cap.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

// The number of the scope that is open in the process, or 0. Numbers are unique, so a thread never takes another
// thread's scope for its own.
std::atomic<uint64_t> open_scope{0};

}  // namespace

std::atomic<StepListener*> current_listener{nullptr};

bool listens_here() {
  const auto own = ThreadState::get().listener_scope;
  return own != 0 && own == open_scope.load(std::memory_order_acquire);
}

ListenerScope::ListenerScope(StepListener& listener) {
  [[maybe_unused]] static const bool is_set_up = [] {
    call_in_forked_child(ForkCall::kListener, &forget_listener);
    on_module_scope_change(&tell_scope_changed);
    return true;
  }();
  static std::atomic<uint64_t> scopes{0};
  number_ = ++scopes;
  uint64_t none = 0;
  if (!open_scope.compare_exchange_strong(none, number_))
    throw InvalidArgument(
        "[refrain] another profile() or MemoryBudget is active in this process; expected one at a time");
  auto* hooks = Tape::get().cap_hooks.load();
  if (hooks) hooks->wake();
  ThreadState::get().listener_scope = number_;
  current_listener.store(&listener, std::memory_order_release);
  if (hooks) hooks->listening();
}

ListenerScope::~ListenerScope() {
  if (open_scope.load() == number_) forget_listener();  // else this is a forked child, which began without
}

void forget_listener() {
  current_listener.store(nullptr, std::memory_order_release);
  open_scope.store(0, std::memory_order_release);
}

}  // namespace refrain::tape
