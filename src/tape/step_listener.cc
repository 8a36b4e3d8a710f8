#include "tape/step_listener.h"

#include <thread>

#include "refrain/error.h"

namespace refrain::tape {
namespace {

std::thread::id owner;  // written while there is none

}  // namespace

std::atomic<StepListener*> current_listener{nullptr};

bool listens_here() { return owner == std::this_thread::get_id(); }

ListenerScope::ListenerScope(StepListener& listener) {
  if (current_listener.load())
    throw InvalidArgument("[refrain] a step is being profiled or runs by a plan already; found a second, expected one at a time in the process");
  owner = std::this_thread::get_id();
  current_listener.store(&listener, std::memory_order_release);
}

ListenerScope::~ListenerScope() { current_listener.store(nullptr); }

}  // namespace refrain::tape
