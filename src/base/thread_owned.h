#pragma once

#include <utility>

namespace refrain {

/// Returns this thread's own `T`, made at the first call and destroyed with the thread. It is on the heap: the loader
/// has little static thread-local memory for all libraries of a process together. A call that comes after its
/// destruction, while the thread ends, gets another one that is never destroyed. Cost: a call when the library was
/// loaded by `dlopen`, else a load.
template <typename T>
T& thread_owned() {
  static thread_local T* current = nullptr;
  if (current) return *current;
  struct Guard {
    ~Guard() { delete std::exchange(current, nullptr); }
  };
  current = new T;
  static thread_local Guard guard;
  (void)guard;
  return *current;
}

}  // namespace refrain
