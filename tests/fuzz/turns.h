#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace refrain::fuzz {

/// Two threads that run one at a time, so that what they do together is a function of the program alone.
class Turns {
 public:
  /// Waits for the first turn of `thread`, 0 or 1; 0 begins.
  void begin(int thread) {
    std::unique_lock lock(mutex_);
    wait(lock, thread);
  }
  /// Ends this turn, and waits for the next one.
  void next(int thread) {
    std::unique_lock lock(mutex_);
    pass_on(thread);
    wait(lock, thread);
  }
  void end(int thread) {
    std::lock_guard lock(mutex_);
    ended_[thread] = true;
    pass_on(thread);
  }

 private:
  void pass_on(int thread) {
    turn_ = ended_[1 - thread] ? thread : 1 - thread;
    changed_.notify_all();
  }
  void wait(std::unique_lock<std::mutex>& lock, int thread) {
    if (changed_.wait_for(lock, std::chrono::seconds(60), [&] { return turn_ == thread; })) return;
    std::fprintf(stderr, "two threads of a program wait for each other\n");
    std::abort();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int turn_ = 0;
  bool ended_[2] = {false, false};
};

}  // namespace refrain::fuzz
