#include "random_programs.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "refrain/memory.h"
#include "refrain/tape.h"

/// REFRAIN_FUZZ_PROGRAMS=6000  accepted programs to run
/// REFRAIN_FUZZ_SEED=1         seed of the first; a failing seed with REFRAIN_FUZZ_PROGRAMS=1 runs that one again
/// REFRAIN_FUZZ_WITHOUT=a,b    step kinds to leave out
/// REFRAIN_FUZZ_PRINT=1        print every program before it runs
namespace refrain::fuzz {
namespace {

volatile uint64_t current_seed = 0;

/// A crash names the program too.
void report_crash(int signal) {
  char text[96];
  const int n = std::snprintf(text, sizeof text, "crashed in the program of seed %llu\n",
                              static_cast<unsigned long long>(current_seed));
  if (n > 0 && write(2, text, static_cast<size_t>(n)) < 0) _exit(1);
  std::signal(signal, SIG_DFL);
  raise(signal);
}

int64_t env_number(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::atoll(text);
}

class RandomPrograms : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    at::set_num_threads(1);
    install_memory_tracking();
    for (int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGBUS}) std::signal(signal, report_crash);
  }
};

TEST_F(RandomPrograms, AreEqualToAPlainRunAndLeakNothing) {
  const int64_t wanted = env_number("REFRAIN_FUZZ_PROGRAMS", 6000);
  const uint64_t first = static_cast<uint64_t>(env_number("REFRAIN_FUZZ_SEED", 1));
  const bool print = env_number("REFRAIN_FUZZ_PRINT", 0) != 0;
  constexpr int kEnough = 5;
  int64_t accepted = 0, refused = 0, refused_too = 0, twins = 0, without_gradient = 0, plain_leaks = 0;
  TapeStats excused;  // held by cycles that plain autograd makes too
  int failures = 0;
  // Kernels set up what they keep for good (scratch pads, caches) on first use.
  for (uint64_t seed = 1; seed <= 300 && wanted > 1; ++seed) {
    current_seed = 1'000'000'000 + seed;
    run(random_program(current_seed), Mode::kPlain);
  }
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t seed = first; accepted < wanted && failures < kEnough; ++seed) {
    if (wanted == 1 && seed > first) break;
    current_seed = seed;
    const Program program = random_program(seed);
    if (print) std::fprintf(stderr, "%s\n", to_text(program).c_str());
    const TapeStats before = tape_stats();
    const Judgement judgement = judge(program);
    if (judgement.plain_leaks) {
      const TapeStats after = tape_stats();
      ++plain_leaks;
      excused.live_ops += after.live_ops - before.live_ops;
      excused.live_values += after.live_values - before.live_values;
      excused.live_slots += after.live_slots - before.live_slots;
      excused.live_regions += after.live_regions - before.live_regions;
    }
    switch (judgement.verdict) {
      case Verdict::kEqual:
        ++accepted;
        break;
      case Verdict::kRefused:
        ++refused;
        refused_too += judgement.refused_too ? 1 : 0;
        twins += judgement.twin_agreed ? 1 : 0;
        break;
      case Verdict::kNoGradient:
        ++without_gradient;
        break;
      case Verdict::kFailed: {
        ++failures;
        const Program small = shrink(program, 20.0);
        const Judgement again = judge(small);
        ADD_FAILURE() << "seed " << seed << ": " << judgement.why << "\nshrunk: " << again.why << "\n"
                      << to_text(small);
        break;
      }
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%lld equal, %lld refused by plain autograd (%lld also here, %lld of the others equal to their twin), "
              "%lld without gradient, %d failed; plain leaks in %lld; %.1f s\n",
              static_cast<long long>(accepted), static_cast<long long>(refused), static_cast<long long>(refused_too),
              static_cast<long long>(twins), static_cast<long long>(without_gradient), failures,
              static_cast<long long>(plain_leaks), seconds);
  if (wanted >= 100 && failures == 0) {
    EXPECT_GT(accepted, 2 * (refused + without_gradient)) << "plain refuses too many programs";
    EXPECT_LT(plain_leaks, accepted / 5) << "leaks are compared in too few programs";
  }
  const TapeStats stats = tape_stats();
  EXPECT_EQ(stats.live_ops, excused.live_ops);
  EXPECT_EQ(stats.live_values, excused.live_values);
  EXPECT_EQ(stats.live_slots, excused.live_slots);
  EXPECT_EQ(stats.live_regions, excused.live_regions);
  if (wanted < 1000 || failures > 0 || std::getenv("REFRAIN_FUZZ_WITHOUT") != nullptr) return;
  EXPECT_GT(stats.replayed_ops, wanted);
  const auto exercised = exercised_kinds();
  for (std::string_view kind : step_kinds()) {
    EXPECT_TRUE(std::find(exercised.begin(), exercised.end(), kind) != exercised.end()) << kind << " never ran";
  }
}

TEST_F(RandomPrograms, AreAFunctionOfTheirSeed) {
  EXPECT_EQ(to_text(random_program(7)), to_text(random_program(7)));
  EXPECT_NE(to_text(random_program(7)), to_text(random_program(8)));
}

}  // namespace
}  // namespace refrain::fuzz
