#include "random_programs.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "refrain/memory.h"
#include "refrain/tape.h"
#include "tape/offload.h"
#include "tape/storage_copy.h"
#include "tests/fuzz/trials.h"

/// REFRAIN_FUZZ_PROGRAMS=6000  accepted programs to run
/// REFRAIN_FUZZ_SEED=1         seed of the first; a failing seed with REFRAIN_FUZZ_PROGRAMS=1 runs that one again
/// REFRAIN_FUZZ_WITHOUT=a,b    step kinds to leave out
/// REFRAIN_FUZZ_PRINT=1        print every program before it runs
namespace refrain::fuzz {
namespace {

/// Everything that a run of the whole test must have met, by name.
std::vector<std::pair<std::string, int64_t>> counts(const Coverage& seen) {
  std::vector<std::pair<std::string, int64_t>> all = {{"with a policy", seen.with_policy},
                                                      {"rerun", seen.rerun},
                                                      {"rerun in replay", seen.rerun_in_replay},
                                                      {"policy in rerun", seen.policy_in_rerun},
                                                      {"rerun in rerun", seen.rerun_in_rerun},
                                                      {"strict", seen.strict},
                                                      {"debug", seen.debug},
                                                      {"without early stop", seen.run_to_the_end},
                                                      {"functions called again", seen.called_again},
                                                      {"inputs stored", seen.inputs_stored},
                                                      {"inputs fetched", seen.inputs_fetched},
                                                      {"policies said must save", seen.answers[0]},
                                                      {"prefer save", seen.answers[1]},
                                                      {"must recompute", seen.answers[2]},
                                                      {"prefer recompute", seen.answers[3]},
                                                      {"offload", seen.answers[4]},
                                                      {"backward", seen.kinds[Backward::kBackward]},
                                                      {"grad", seen.kinds[Backward::kGrad]},
                                                      {"double backward", seen.kinds[Backward::kDoubleBackward]},
                                                      {"of a term", seen.of_a_term}};
  for (size_t n = 0; n < std::size(seen.backwards); ++n) {
    all.emplace_back("programs of " + std::to_string(n) + " backwards", seen.backwards[n]);
  }
  return all;
}

void print_coverage(const Coverage& seen) {
  std::string text = std::to_string(seen.regions) + " regions: ";
  for (const auto& [name, count] : counts(seen)) text += std::to_string(count) + " " + name + ", ";
  text.resize(text.size() - 2);
  std::printf("%s\n", text.c_str());
}

void expect_covered(const Coverage& seen) {
  for (const auto& [name, count] : counts(seen)) EXPECT_GT(count, 0) << name << " never happened";
}

/// Puts bytes elsewhere in host memory, but for some.
class CopyStore : public tape::OffloadStore {
 public:
  std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes) override {
    if (bytes.nbytes() % 3 == 1) return nullptr;
    ++stored;
    return std::make_shared<Copy>(tape::clone_storage(bytes));
  }
  int64_t stored = 0;
  static int64_t fetched;

 private:
  struct Copy : tape::Offloaded {
    explicit Copy(c10::Storage bytes) : bytes(std::move(bytes)) {}
    c10::Storage fetch() override {
      ++fetched;
      return tape::clone_storage(bytes);
    }
    c10::Storage bytes;
  };
};
int64_t CopyStore::fetched = 0;
CopyStore store;

class RandomPrograms : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    tape::set_offload_store({std::shared_ptr<void>(), &store});
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
  int64_t accepted = 0, refused = 0, refused_too = 0, twins = 0, changed = 0, without_gradient = 0, unstable = 0,
          plain_leaks = 0;
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
      case Verdict::kChanged:
        ++changed;
        break;
      case Verdict::kUnstable:
        ++unstable;
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
  std::printf(
      "%lld equal, %lld refused by plain autograd (%lld also here, %lld of the others equal to their twin), "
      "%lld refused by rerun because an input was changed, %lld without gradient, %lld unstable, %d failed; "
      "plain leaks in %lld; %.1f s\n",
      static_cast<long long>(accepted), static_cast<long long>(refused), static_cast<long long>(refused_too),
      static_cast<long long>(twins), static_cast<long long>(changed), static_cast<long long>(without_gradient),
      static_cast<long long>(unstable), failures, static_cast<long long>(plain_leaks), seconds);
  const Coverage& seen = coverage();
  print_coverage(seen);
  if (wanted >= 100 && failures == 0) {
    EXPECT_GT(accepted, 2 * (refused + changed + without_gradient)) << "plain refuses too many programs";
    EXPECT_LE(unstable, 1 + accepted / 1000) << "too many programs excused";
    EXPECT_LT(plain_leaks, accepted / 5) << "leaks are compared in too few programs";
  }
  const TapeStats stats = tape_stats();
  EXPECT_EQ(stats.live_ops, excused.live_ops);
  EXPECT_EQ(stats.live_values, excused.live_values);
  EXPECT_EQ(stats.live_slots, excused.live_slots);
  EXPECT_EQ(stats.live_regions, excused.live_regions);
  if (wanted < 1000 || failures > 0 || std::getenv("REFRAIN_FUZZ_WITHOUT") != nullptr) return;
  EXPECT_GT(stats.replayed_ops, wanted);
  EXPECT_GT(changed, 0) << "rerun never noticed a changed input";
  expect_covered(seen);
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
