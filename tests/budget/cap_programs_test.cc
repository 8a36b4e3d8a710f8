#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <map>
#include <optional>

#include "memory/testing.h"
#include "tape/tape.h"
#include "tests/budget/cap_support.h"
#include "tests/fuzz/machine.h"
#include "tests/fuzz/trials.h"

/// Random programs under caps that come and go, against the same program without.
///
/// REFRAIN_FUZZ_PROGRAMS=3000  programs to run
/// REFRAIN_FUZZ_SEED=1         seed of the first; a failing seed with REFRAIN_FUZZ_PROGRAMS=1 runs that one again
/// REFRAIN_FUZZ_PRINT=1        print programs that fail
/// REFRAIN_FUZZ_SHRINK=20      make them smaller first, for so many seconds
namespace refrain::fuzz {
namespace {

using refrain_test::kNoLimit;
using refrain_test::Torture;

/// What the caps of all runs did: how the test notices that something never happens.
struct Seen {
  int64_t caps = 0, nested = 0, ended_early = 0, tortured = 0, evicted = 0, evictions = 0, recomputes = 0;
  int64_t programs = 0, equal = 0, refused = 0, steps_refused = 0, ran_out = 0, errors = 0, twins = 0, unstable = 0, leaks_compared = 0;
};
Seen seen;

MemoryCapOptions random_cap(Rng& rng) {
  constexpr EvictionHeuristic kHeuristics[] = {EvictionHeuristic::kHDtr, EvictionHeuristic::kLru,
                                                        EvictionHeuristic::kLargest, EvictionHeuristic::kMsps};
  constexpr Bytes kLeast[] = {1, 1, 1, 16, 64, 4096};
  auto options = MemoryCapOptions().min_bytes(kLeast[rng.below(6)]);
  if (rng.chance(0.6)) options.heuristic(kHeuristics[rng.below(4)]);
  return options;
}

/// One unlimited cap for the whole run: nothing leaves.
class Recorded final : public Surroundings {
 public:
  void before_step() override {
    if (!cap_) cap_.emplace(kNoLimit);
  }
  void end() override { cap_.reset(); }

 private:
  std::optional<MemoryCap> cap_;
};

/// Caps that come and go between steps.
class RandomCaps final : public Surroundings {
 public:
  /// @param level, peak  of memory, before the run and over that in a run in which nothing leaves.
  RandomCaps(uint64_t seed, Bytes level, Bytes peak)
      : rng_(mix(seed, 0xCA9)),
        level_(level),
        peak_(peak),
        changes_(rng_.chance(0.6) ? 0.15 : 0.0),
        torture_(rng_.chance(0.25) ? 0.2 : 0.0),
        limits_(rng_.chance(0.7)) {}

  void before_step() override {
    if (is_recomputing()) return;  // autograd puts the thread's state back after a backward: a cap begun in it would see nothing
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
      ++seen.tortured;
    }
    if (rng_.chance(0.1)) {
      refrain_test::evict_all();
      ++seen.evicted;
    }
  }

  void lift() override {
    limits_ = false;
    const bool stays = !caps_.empty() && rng_.chance(0.5);
    if (stays) caps_.insert(caps_.begin(), std::make_unique<MemoryCap>(kNoLimit, random_cap(rng_)));
    while (caps_.size() > (stays ? 1 : 0)) close();
  }

  void end() override {
    tortured_.reset();
    while (!caps_.empty()) close();
  }

 private:
  void open() {
    const bool limited = limits_ && rng_.chance(0.8);
    const auto limit = level_ + static_cast<Bytes>(static_cast<double>(peak_) * (0.3 + 0.8 * rng_.uniform()));
    ++(caps_.empty() ? seen.caps : seen.nested);
    caps_.push_back(std::make_unique<MemoryCap>(limited ? limit : kNoLimit, random_cap(rng_)));
  }

  void close() {
    if (caps_.empty()) return;
    if (caps_.size() == 1) {
      const auto stats = caps_.back()->stats();
      seen.evictions += stats.evictions;
      seen.recomputes += stats.recomputes;
      seen.ended_early += limits_;
    }
    caps_.pop_back();
  }

  Rng rng_;
  const Bytes level_, peak_;
  const double changes_, torture_;
  bool limits_;
  bool began_ = false;
  std::vector<std::unique_ptr<MemoryCap>> caps_;
  std::optional<Torture> tortured_;
};

class Poison {
 public:
  explicit Poison(bool on) { memory_testing::set_poison(on); }
  ~Poison() { memory_testing::set_poison(false); }
  Poison(const Poison&) = delete;
  Poison& operator=(const Poison&) = delete;
};

Program without_steps(Program program, const std::vector<int>& numbers) {
  for (Step& step : program.steps)
    if (std::find(numbers.begin(), numbers.end(), step.number) != numbers.end()) step.number = -step.number;
  return program;
}

// A message without what differs from run to run.
std::string first_line(const std::string& error) { return error.substr(0, error.find('\n')); }

// Regions refuse what has been overwritten; under a cap, which can compute it again, they need not.
std::string compare_refused(const Program& program, const Outcome& ours) {
  ++seen.errors;
  if (!ours.error.empty()) return "";
  const Outcome twin = run(program, Mode::kTwin);
  if (!twin.error.empty() || twin.picks != ours.picks || twin.failed_steps != ours.failed_steps) return "";
  ++seen.twins;
  const std::string differs = twin_difference(twin, ours);
  return differs.empty() ? "" : "refused without a cap; the out-of-place twin gives other gradients:\n" + differs;
}

/// @returns what is wrong with `ours`; "" if nothing is.
std::string compare(const Program& program, Mode mode, const Outcome& ours) {
  const Program same = without_steps(program, ours.refused_steps);
  const Outcome plain = run(same, mode);
  if (!ours.ran_out && !plain.error.empty() && mode == Mode::kCheckpoint) return compare_refused(same, ours);
  if (!ours.ran_out && first_line(plain.error) != first_line(ours.error))
    return "throws\n  " + first_line(ours.error) + "\nwhere the plain run " +
           (plain.error.empty() ? "does not" : "throws\n  " + first_line(plain.error));
  const bool comparable = !ours.ran_out || ours.forward_ended;
  const std::string differs = comparable ? difference(plain, ours, ours.ran_out) : "";
  if (!differs.empty()) return differs;
  seen.steps_refused += static_cast<int64_t>(ours.refused_steps.size());
  seen.ran_out += ours.ran_out;
  seen.errors += !plain.error.empty();
  if (plain.leaked_bytes != 0 || !leak(plain).empty() || ours.made_cycle) return "";
  ++seen.leaks_compared;
  // a step that was refused in the middle may have made a cycle by then that LibTorch makes without a cap too
  const std::string leaked = leak(ours);
  return leaked.empty() || ours.refused_steps.empty() || leak(run(program, mode)).empty() ? leaked : "";
}

class CapPrograms : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    at::set_num_threads(1);
    install_memory_tracking();
    for (int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGBUS}) std::signal(signal, report_crash);
    // Kernels set up what they keep for good (scratch pads, caches) on first use.
    for (uint64_t seed = 1; seed <= 300; ++seed) run(random_program(1'000'000'000 + seed), Mode::kPlain);
  }
};

// What programs before left where they made a cycle of LibTorch's own, with a region that so never ends: not to be let go of in the next.
void forget_dead() {
  for (auto values = tape_stats().live_values + 1; tape_stats().live_values < values;) {
    values = tape_stats().live_values;
    tape::TapeLock lock;
    tape::sweep_map(lock);
  }
}

// @returns what is wrong; "" if nothing is.
std::string trial(const Program& program, Mode mode, uint64_t seed, std::string* text = nullptr) {
  forget_dead();
  const Bytes level = memory_stats().current;
  Bytes peak = 0;
  {
    Recorded recorded;
    const MemoryScope scope;
    const Outcome same = run(program, mode, nullptr, &recorded);
    peak = scope.peak();
    const std::string differs = compare(program, mode, same);
    if (!differs.empty()) return "with nothing to leave: " + differs;
  }
  RandomCaps caps(seed, level, peak);
  const Outcome ours = run(program, mode, text, &caps);
  const std::string differs = compare(program, mode, ours);
  if (!differs.empty()) return differs;
  ++seen.equal;
  seen.refused += ours.ran_out || !ours.refused_steps.empty();
  if (!ours.ran_out && ours.refused_steps.empty()) return "";
  // what was refused leaves nothing behind
  return compare(program, mode, run(program, mode));
}

// What failed, without numbers and names.
std::string kind_of(const std::string& wrong) { return wrong.substr(0, std::min(wrong.find_first_of("0123456789"), wrong.find('`'))); }

void print(const Program& program, Mode mode, uint64_t seed) {
  const std::string wrong = trial(program, mode, seed);
  const auto seconds = static_cast<double>(env_number("REFRAIN_FUZZ_SHRINK", 0));
  const Program small = shrink(program, seconds, [&](const Program& candidate) {
    const std::string its = trial(candidate, mode, seed);
    return !its.empty() && kind_of(its) == kind_of(wrong);
  });
  std::string text;
  const std::string its = trial(small, mode, seed, &text);
  std::cout << refrain::fuzz::to_text(small) << "under caps:\n" << text << its << '\n';
}

TEST_F(CapPrograms, AreEqualToRunsWithout) {
  const int64_t wanted = env_number("REFRAIN_FUZZ_PROGRAMS", 3000);
  const auto first = static_cast<uint64_t>(env_number("REFRAIN_FUZZ_SEED", 1));
  constexpr int kEnough = 8;
  int failures = 0;
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t seed = first; seed < first + static_cast<uint64_t>(wanted) && failures < kEnough; ++seed) {
    current_seed = seed;
    const Program program = random_program(seed);
    const Mode mode = mix(seed, 3) % 2 == 0 ? Mode::kPlain : Mode::kCheckpoint;
    const Poison poison(program.poison);
    ++seen.programs;
    const std::string wrong = trial(program, mode, seed);
    if (wrong.empty()) continue;
    if (!is_stable(program)) {
      ++seen.unstable;
      continue;
    }
    ++failures;
    if (std::getenv("REFRAIN_FUZZ_PRINT")) print(program, mode, seed);
    ADD_FAILURE() << "seed " << seed << (mode == Mode::kPlain ? ", regions as calls: " : ": ") << wrong;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::cout << fmt::format(
      "{} programs in {:.1f} s: {} equal, {} of them refused ({} steps, {} for good), {} with errors of their own ({} as their twin), {} unstable; {} caps, "
      "{} nested, {} ended early, torture switched {} times, all evicted {} times; {} evictions, {} recomputes; leaks compared in {}\n",
      seen.programs, seconds, seen.equal, seen.refused, seen.steps_refused, seen.ran_out, seen.errors, seen.twins, seen.unstable, seen.caps,
      seen.nested, seen.ended_early, seen.tortured, seen.evicted, seen.evictions, seen.recomputes, seen.leaks_compared);
  if (wanted < 1000 || failures > 0) return;
  EXPECT_LE(seen.unstable, 1 + wanted / 500);
  for (const int64_t count : {seen.nested, seen.ended_early, seen.tortured, seen.evicted, seen.steps_refused, seen.ran_out, seen.errors})
    EXPECT_GT(count, 20) << "something hardly ever happens";
  EXPECT_GT(seen.evictions, 10 * wanted);
  EXPECT_GT(seen.recomputes, 10 * wanted);
  EXPECT_GT(seen.leaks_compared, wanted / 2);
}

}  // namespace
}  // namespace refrain::fuzz
