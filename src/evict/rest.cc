#include "evict/rest.h"

#include <algorithm>

#include "evict/cap_state.h"
#include "evict/securing.h"
#include "memory/stack.h"
#include "tape/step_listener.h"

namespace refrain::tape {
namespace {

constexpr int kMostNeeded = 1024;

double rise(const QuietSteps& quiet) { return static_cast<double>(quiet.highest - quiet.lowest); }

bool is_roomy() {
  const auto& quiet = cap().quiet;
  if (resident_allocator().limit() != ResidentAllocator::kNoLimit) return false;
  const auto& rule = cap().rest_rule;
  const auto limit = static_cast<double>(limiting_allocator().limit()), highest = static_cast<double>(quiet.highest);
  return highest + rule.room * rise(quiet) <= limit && highest <= rule.most * limit;
}

bool may_rest() {
  const auto& all = cap();
  const auto* const listener = current_listener.load();
  return all.open == 1 && all.always_recording == 0 && !all.closing && all.evicted.empty() && !all.before_operator &&
         (!listener || listener->may_rest()) && all.quiet.count >= all.quiet.needed && is_roomy();
}

void rest(TapeLock& lock) {
  const auto& quiet = cap().quiet;
  limiting_allocator().set_mark(quiet.highest + static_cast<Bytes>(cap().rest_rule.slack * rise(quiet)));
  auto& tape = lock.tape();
  tape.rests.store(true);  // first: an operator that finds no cap must not take it for closed
  tape.cap.store(nullptr);
  forget_recorded(lock);
  ++cap().counters.rests;
}

void begin_quiet(QuietSteps& quiet) {
  quiet.count = 0;
  quiet.lowest = quiet.highest = limiting_allocator().in_use();
}

/// Steps in a row turned out not to tell what comes.
void wait_longer(QuietSteps& quiet) {
  if (quiet.needed < kMostNeeded) quiet.needed = std::min(2 * std::max(quiet.needed, quiet.count), kMostNeeded);
}

/// Takes up what steps under this limit have shown, if they began at this level: others are of another model.
void recall(Bytes limit, Bytes level) {
  constexpr size_t kMost = 8;
  auto& quiet = cap().quiet;
  const auto is_of_these = [&](const QuietSteps& one) {
    return one.limit == limit && one.lowest <= level && 16 * (level - one.lowest) <= one.highest - one.lowest;
  };
  if (!is_of_these(quiet)) {
    auto& others = cap().quiet_before;
    others.push_back(quiet);
    const auto known = std::find_if(others.begin(), others.end(), is_of_these);
    if (known != others.end()) {
      quiet = *known;
      others.erase(known);
    } else {
      quiet = {.needed = cap().rest_rule.steps};
      begin_quiet(quiet);
    }
    if (others.size() > kMost) others.erase(others.begin());
  }
  quiet.limit = limit;
  quiet.evictions = 0;
}

}  // namespace

void set_rest_rule(const RestRule& rule) {
  wake();
  TapeLock lock;
  cap().rest_rule = rule;
  cap().quiet = {.needed = rule.steps};
  cap().quiet_before.clear();
}

void set_before_operator(std::function<void()> call) {
  cap().before_operator = std::move(call);
  wake();
}

void rest_after_step(TapeLock& lock) {
  auto& quiet = cap().quiet;
  auto& allocator = limiting_allocator();
  const int64_t evictions = cap().counters.evictions.load();
  const Bytes level = allocator.in_use();
  const Bytes peak = allocator.set_mark(level);
  const bool evicts = std::exchange(quiet.evictions, evictions) != evictions;
  const auto* const listener = current_listener.load();
  // what a plan lets go though nothing has to leave does not count
  if ((evicts && !(listener && listener->may_rest())) || !cap().evicted.empty()) {
    if (quiet.count > 0) wait_longer(quiet);
    return begin_quiet(quiet);
  }
  ++quiet.count;
  quiet.highest = std::max(quiet.highest, peak);
  quiet.lowest = std::min(quiet.lowest, level);
  if (may_rest()) rest(lock);
}

void rest_from_start(TapeLock& lock) {
  auto& allocator = limiting_allocator();
  const Bytes limit = allocator.limit(), level = allocator.in_use();
  allocator.set_mark(level);
  recall(limit, level);
  if (may_rest()) rest(lock);
}

void rest_under_listener() {
  TapeLock lock;
  if (lock.tape().cap.load() && cap().region && limiting_allocator().in_use() <= cap().quiet.highest && may_rest())
    rest(lock);
}

namespace {

void record_again(TapeLock& lock) {
  auto& tape = lock.tape();
  forget_recorded(lock);  // by another thread, whose operator ran as the rest began
  cap().history.clear();
  cap().step = {};
  cap().passes.clear();
  limiting_allocator().set_mark(limiting_allocator().in_use());
  tape.cap.store(cap().region);  // first, as in `rest`
  tape.rests.store(false);
  if (auto* listener = current_listener.load()) listener->woke();
}

// `must` is asked with the lock.
template <typename Must>
void wake_if(const Must& must) {
  if (!Tape::get().rests.load()) return;
  TapeLock lock;
  if (lock.tape().rests.load() && must()) record_again(lock);
}

}  // namespace

void wake() {
  wake_if([] { return true; });
}

void wake_above() {
  wake_if([] {
    wait_longer(cap().quiet);
    begin_quiet(cap().quiet);
    return true;
  });
}

void wake_unless_roomy() {
  wake_if([] { return !is_roomy(); });
}

}  // namespace refrain::tape
