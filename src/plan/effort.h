#pragma once

#include <chrono>
#include <cstdint>

namespace refrain::plan {

/// A limit on work, in steps, so that results do not depend on the machine; and a limit on time beside it.
class Effort {
 public:
  using Clock = std::chrono::steady_clock;

  Effort(int64_t steps, double seconds)
      : steps_(steps),
        deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))) {}

  void spend(int64_t steps) {
    spent_ += steps;
    if (spent_ < next_look_) return;
    next_look_ = spent_ + 20'000;
    if (Clock::now() >= deadline_) timed_out_ = true;
  }
  bool is_over() const { return timed_out_ || spent_ >= steps_; }
  bool timed_out() const { return timed_out_; }
  int64_t spent() const { return spent_; }
  int64_t left() const { return steps_ - spent_; }
  double seconds_left() const { return std::chrono::duration<double>(deadline_ - Clock::now()).count(); }

 private:
  int64_t steps_, spent_ = 0, next_look_ = 20'000;
  Clock::time_point deadline_;
  bool timed_out_ = false;
};

}  // namespace refrain::plan
