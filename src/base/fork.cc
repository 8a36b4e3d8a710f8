#include "base/fork.h"

#include <pthread.h>

#include <array>
#include <cstddef>

namespace refrain {
namespace {

class Forks {
 public:
  static Forks& get() {
    static auto* forks = new Forks;  // a thread may fork while the process ends
    return *forks;
  }

  void add(OrderedMutex& mutex) {
    const std::lock_guard lock(mutex_);
    mutexes_[static_cast<size_t>(mutex.order())] = &mutex;
  }

  void add(ForkCall number, void (*function)()) {
    const std::lock_guard lock(mutex_);
    calls_[static_cast<size_t>(number)] = function;
  }

 private:
  Forks() {
    pthread_atfork([] { get().lock(); }, [] { get().unlock(); },
                   [] {
                     get().unlock();
                     get().call();
                   });
  }

  void lock() {
    mutex_.lock();
    for (auto* mutex : mutexes_)
      if (mutex) mutex->lock();
  }

  void unlock() {
    for (auto at = mutexes_.rbegin(); at != mutexes_.rend(); ++at)
      if (*at) (*at)->unlock();
    mutex_.unlock();
  }

  void call() const {
    for (auto* call : calls_)
      if (call) call();
  }

  std::mutex mutex_;  // guards what follows
  std::array<OrderedMutex*, static_cast<size_t>(LockOrder::kCount)> mutexes_{};
  std::array<void (*)(), static_cast<size_t>(ForkCall::kCount)> calls_{};
};

}  // namespace

void lock_at_fork(OrderedMutex& mutex) { Forks::get().add(mutex); }

OrderedMutex& make_mutex_for_forks(LockOrder order) {
  auto* mutex = new OrderedMutex(order);
  lock_at_fork(*mutex);
  return *mutex;
}

void call_in_forked_child(ForkCall number, void (*call)()) { Forks::get().add(number, call); }

}  // namespace refrain
