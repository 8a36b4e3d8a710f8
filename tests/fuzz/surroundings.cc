#include <algorithm>
#include <limits>
#include <optional>
#include <thread>

#include "evict/rest.h"
#include "evict/room_maker.h"
#include "machine.h"
#include "plan/plan.h"
#include "refrain/memory_budget.h"
#include "refrain/memory_cap.h"
#include "tests/budget/torture.h"

/// Caps and budgets around a program, which come and go between its steps.
namespace refrain::fuzz {
namespace {

constexpr Bytes kNoLimit = Bytes{1} << 40;

MemoryCapOptions random_cap(Rng& rng) {
  constexpr EvictionHeuristic kHeuristics[] = {EvictionHeuristic::kHDtr, EvictionHeuristic::kLru,
                                               EvictionHeuristic::kLargest, EvictionHeuristic::kMsps};
  constexpr Bytes kLeast[] = {1, 1, 1, 16, 64, 4096};
  auto options = MemoryCapOptions().min_bytes(kLeast[rng.below(6)]);
  if (rng.chance(0.6)) options.heuristic(kHeuristics[rng.below(4)]);
  return options;
}

/// Half of them rest at each chance, and wake somewhere in the steps after.
tape::RestRule rest_rule(uint64_t random) {
  if (random % 2 == 0) return {.steps = tape::RestRule::kNever};
  return {.steps = static_cast<int>((random >> 8) % 2),
          .room = -1e6,
          .most = 1e6,
          .slack = static_cast<double>((random >> 16) % 256) / 170 - 1.0};
}

class Caps : public Surroundings {
 public:
  Caps(uint64_t seed, Bytes level, Bytes peak)
      : rng_(mix(seed, 0xCA9)),
        level_(level),
        peak_(peak),
        changes_(rng_.chance(0.6) ? 0.15 : 0.0),
        torture_(rng_.chance(0.25) ? 0.2 : 0.0),
        evictions_(rng_.chance(0.9) ? 0.1 : 0.0),
        limits_(rng_.chance(0.6)) {
    tape::set_rest_rule(rest_rule(mix(seed, 0x4E57)));
  }
  ~Caps() override {
    Caps::end();
    tape::set_rest_rule({});
  }

  bool may_refuse() const override { return limits_; }

  void before_step() override {
    // autograd puts the thread's state back after a backward: a cap begun in it would see nothing
    if (is_recomputing() || std::this_thread::get_id() != thread_) return;
    if (caps_.empty() && (!began_ || rng_.chance(0.2))) open();
    began_ = true;
    if (rng_.chance(changes_)) {
      if (rng_.chance(0.5) && caps_.size() < 4)
        open();
      else
        close();
    }
    if (rng_.chance(torture_)) {
      tortured_ ? tortured_.reset() : void(tortured_.emplace());
      ++coverage().tortured;
    }
    if (rng_.chance(evictions_)) {
      budget::RoomMaker::get().evict_all();
      ++coverage().evicted;
    }
  }

  void lift() override {
    const bool was_limited = std::exchange(limits_, false);
    const bool stays = !caps_.empty() && rng_.chance(0.5);
    if (stays) caps_.insert(caps_.begin(), std::make_unique<MemoryCap>(kNoLimit, random_cap(rng_)));
    while (caps_.size() > (stays ? 1 : 0)) close(was_limited);
  }

  void end() override {
    tortured_.reset();
    while (!caps_.empty()) close();
  }

 protected:
  /// A limit that may refuse something.
  Bytes tight() { return level_ + static_cast<Bytes>(static_cast<double>(peak_) * (0.3 + 0.8 * rng_.uniform())); }

  Rng rng_;

 private:
  void open() {
    const bool limited = limits_ && rng_.chance(0.8);
    ++(caps_.empty() ? coverage().caps : coverage().nested_caps);
    caps_.push_back(std::make_unique<MemoryCap>(limited ? tight() : kNoLimit, random_cap(rng_)));
  }

  void close(bool early = false) {
    if (caps_.empty()) return;
    if (caps_.size() == 1) {
      const auto stats = caps_.back()->stats();
      coverage().evictions += stats.evictions;
      coverage().recomputes += stats.recomputes;
      coverage().unrecorded_steps += stats.unrecorded_steps;
      coverage().rests += tape::cap_counters().rests.load();
      coverage().ended_early += limits_ || early;
    }
    caps_.pop_back();
  }

  const Bytes level_, peak_;
  const double changes_, torture_, evictions_;
  bool limits_;
  bool began_ = false;
  const std::thread::id thread_ = std::this_thread::get_id();
  std::vector<std::unique_ptr<MemoryCap>> caps_;
  std::optional<refrain_test::Torture> tortured_;
};

/// A budget over all iterations, with an `OffloadScope` and caps in it or around it, or none.
class Budgets final : public Caps {
 public:
  Budgets(uint64_t seed, Bytes level, Bytes peak)
      : Caps(seed, level, peak),
        how_(static_cast<How>(rng_.below(3))),
        has_caps_(rng_.chance(0.35)),
        caps_first_(rng_.chance(0.5)),
        stores_(rng_.chance(0.2)),
        fraction_(static_cast<double>(rng_.below(5)) * 0.25),
        plans_fully_(mix(seed, 11) % 16 == 0),
        steps_before_(plan::limit_default_steps(plans_fully_ ? std::numeric_limits<int64_t>::max() : kFewSteps)) {}
  ~Budgets() override {
    Budgets::end();
    plan::limit_default_steps(steps_before_);
  }

  bool may_refuse() const override { return (has_caps_ && Caps::may_refuse()) || how_ == kBytes; }

  void iteration(int number, const std::function<void()>& run) override {
    if (number == 0) {
      if (stores_) scope_.emplace(scope_store());
      if (has_caps_ && caps_first_) Caps::before_step();
      if (how_ != kProfile) open_budget();
    }
    if (number > 0 || how_ != kProfile) return run();
    ++open_budgets();  // no other may begin in it
    const auto done = [&](std::exception_ptr error) {
      --open_budgets();
      if (error) std::rethrow_exception(error);
    };
    std::optional<StepTrace> trace;
    std::exception_ptr thrown;
    try {
      trace.emplace(profile(run));
    } catch (...) {
      thrown = std::current_exception();
    }
    done(thrown);
    ++coverage().profiled;
    budget_.emplace(plan_step(*trace, Budget::fraction(fraction_),
                              PlanOptions().time_limit(std::chrono::duration<double>(plans_fully_ ? 0.05 : 0.002))));
    opened();
  }

  void before_step() override {
    if (has_caps_) Caps::before_step();
  }

  void lift() override {
    if (how_ == kBytes) close_budget();
    Caps::lift();
  }

  void end() override {
    close_budget();
    Caps::end();
    scope_.reset();
  }

 private:
  enum How { kFraction, kBytes, kProfile };
  static constexpr int64_t kFewSteps = 300'000;

  void open_budget() {
    budget_.emplace(how_ == kBytes ? Budget::bytes(tight()) : Budget::fraction(fraction_));
    opened();
  }
  void opened() {
    ++open_budgets();
    ++coverage().budgets;
  }
  void close_budget() {
    if (!budget_) return;
    const auto stats = budget_->stats();
    coverage().traced_steps += stats.traced_steps;
    coverage().planned_steps += stats.planned_steps;
    coverage().mismatched_steps += stats.mismatched_steps;
    budget_.reset();
    --open_budgets();
  }

  const How how_;
  const bool has_caps_, caps_first_, stores_;
  const double fraction_;
  const bool plans_fully_;  ///< the others as well as 6 ms allow: what is tried here is how plans run
  const int64_t steps_before_;
  std::optional<OffloadScope> scope_;
  std::optional<MemoryBudget> budget_;
};

}  // namespace

std::unique_ptr<Surroundings> surroundings_of(Kind kind, uint64_t seed, int64_t level, int64_t peak) {
  if (kind == Kind::kCaps) return std::make_unique<Caps>(seed, level, peak);
  if (kind == Kind::kBudgets) return std::make_unique<Budgets>(seed, level, peak);
  return nullptr;
}

Mode mode_of(Kind kind, uint64_t seed) {
  return kind == Kind::kRegions || mix(seed, 3) % 2 == 1 ? Mode::kCheckpoint : Mode::kPlain;
}

}  // namespace refrain::fuzz
