#pragma once

#include <cstdint>
#include <mutex>

namespace refrain {

/// The mutexes of the process, in the order in which a thread may take one while it holds another: docs/design/architecture.md says what each guards.
enum class LockOrder : uint8_t {
  kPass,
  kGenerator,
  kTape,
  kTracking,
  kTimeline,
  kWatch,
  kModules,
  kNames,
  kTraits,
  kEffects,
  kRoom,
  kLimits,
  kResident,
  kHeap,
  kCount
};

/// A mutex with a place in that order. Assertion builds (without NDEBUG) end the process where a thread takes one out of order, or twice.
/// Cost: in other builds that of a `std::mutex`.
class OrderedMutex {
 public:
  explicit OrderedMutex(LockOrder order) : order_(order) {}

  void lock() {
    check();
    mutex_.lock();
    note(true);
  }
  bool try_lock() {
    if (!mutex_.try_lock()) return false;
    note(true);
    return true;
  }
  void unlock() {
    note(false);
    mutex_.unlock();
  }
  LockOrder order() const { return order_; }

 private:
#ifdef NDEBUG
  void check() const {}
  void note(bool) const {}
#else
  void check() const;
  void note(bool is_held) const;
#endif

  std::mutex mutex_;
  const LockOrder order_;
};

}  // namespace refrain
