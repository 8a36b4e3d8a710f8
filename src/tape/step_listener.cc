#include "tape/step_listener.h"

#include <thread>

#include "refrain/error.h"

namespace refrain::tape {
namespace {

std::atomic<StepListener*> current{nullptr};
std::thread::id owner;  // written while there is none

}  // namespace

StepListener* step_listener() {
  auto* listener = current.load(std::memory_order_acquire);
  return listener && owner == std::this_thread::get_id() ? listener : nullptr;
}

ListenerScope::ListenerScope(StepListener& listener) {
  if (current.load())
    throw InvalidArgument("[refrain] a step is being profiled or runs by a plan already; found a second, expected one at a time in the process");
  owner = std::this_thread::get_id();
  current.store(&listener, std::memory_order_release);
}

ListenerScope::~ListenerScope() { current.store(nullptr); }

}  // namespace refrain::tape
