#include "random_programs.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "intercept/storage_copy.h"
#include "refrain/memory.h"
#include "refrain/tape.h"
#include "tape/offload.h"
#include "tape/tape.h"
#include "tests/fuzz/trials.h"

/// Random programs of three kinds (regions, caps, budgets: `Kind`), each against its baseline.
///
/// REFRAIN_FUZZ_PROGRAMS=1000  programs to run, of each kind
/// REFRAIN_FUZZ_SEED=1         seed of the first; a failing seed with REFRAIN_FUZZ_PROGRAMS=1 runs that one again
/// REFRAIN_FUZZ_FRESH=1        without REFRAIN_FUZZ_SEED: a seed that no run had before
/// REFRAIN_FUZZ_SECONDS=n      ends after so many
/// REFRAIN_FUZZ_FAILURES=5     ends after so many failures
/// REFRAIN_FUZZ_SHRINK=20      seconds to make a failing program smaller
/// REFRAIN_FUZZ_WITHOUT=a,b    kinds of steps and blocks to leave out, and `noexcept`, `elsewhere`, `iterations`
/// REFRAIN_FUZZ_PRINT=1        print every program before it runs
/// REFRAIN_FUZZ_COUNTS=FILE    write what was counted there too, a line each
namespace refrain::fuzz {
namespace {

/// What a run of many programs must have met, by name.
std::vector<std::pair<std::string, int64_t>> counts(const Coverage& seen, Kind kind) {
  std::vector<std::pair<std::string, int64_t>> all = {{"regions", seen.regions},
                                                      {"with a policy", seen.with_policy},
                                                      {"rerun", seen.rerun},
                                                      {"rerun in replay", seen.rerun_in_replay},
                                                      {"policy in rerun", seen.policy_in_rerun},
                                                      {"rerun in rerun", seen.rerun_in_rerun},
                                                      {"strict", seen.strict},
                                                      {"debug", seen.debug},
                                                      {"without early stop", seen.run_to_the_end},
                                                      {"noexcept functions", seen.noexcepts},
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
                                                      {"of a term", seen.of_a_term},
                                                      {"on another thread", seen.elsewhere},
                                                      {"later iterations", seen.later_iterations},
                                                      {"leaks compared", seen.leaks_compared}};
  for (size_t n = 0; n < std::size(seen.backwards); ++n)
    all.emplace_back(fmt::format("iterations of {} backwards", n), seen.backwards[n]);
  if (kind == Kind::kRegions) return all;
  all.insert(all.end(), {{"caps", seen.caps},
                         {"nested caps", seen.nested_caps},
                         {"caps ended early", seen.ended_early},
                         {"torture switched", seen.tortured},
                         {"all evicted", seen.evicted},
                         {"rests", seen.rests},
                         {"steps unrecorded", seen.unrecorded_steps},
                         {"evictions", seen.evictions},
                         {"recomputes", seen.recomputes},
                         {"steps refused memory", seen.steps_refused},
                         {"runs refused memory", seen.ran_out}});
  if (kind == Kind::kCaps) return all;
  all.insert(all.end(), {{"budgets", seen.budgets},
                         {"profiled", seen.profiled},
                         {"traced steps", seen.traced_steps},
                         {"planned steps", seen.planned_steps}});
  return all;
}

const char* name_of(Kind kind) { return kind == Kind::kRegions ? "regions" : kind == Kind::kCaps ? "caps" : "budgets"; }

uint64_t first_seed() {
  if (std::getenv("REFRAIN_FUZZ_SEED") != nullptr || env_number("REFRAIN_FUZZ_FRESH", 0) == 0)
    return static_cast<uint64_t>(env_number("REFRAIN_FUZZ_SEED", 1));
  std::random_device random;
  return 1'000'000'000'000 + (static_cast<uint64_t>(random()) << 8);
}

struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};
Quiet quiet;

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
    explicit Copy(c10::Storage stored) : bytes(std::move(stored)) {}
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
    c10::WarningUtils::set_warning_handler(&quiet);
    at::set_num_threads(1);
    install_memory_tracking();
    for (int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGBUS}) std::signal(signal, report_crash);
    // Kernels set up what they keep for good (scratch pads, caches) on first use.
    for (uint64_t seed = 1'000'000'001; seed <= 1'000'000'300; ++seed) {
      current_seed = seed;
      run(random_program(seed), Mode::kPlain);
    }
  }

  // What programs before left where they made a cycle of LibTorch's own, with a region that so never ends: not to be let go of in the next.
  static void forget_dead() {
    for (auto values = tape_stats().live_values + 1; tape_stats().live_values < values;) {
      values = tape_stats().live_values;
      tape::TapeLock lock;
      tape::sweep_map(lock);
    }
  }

  void expect_equal(Kind kind);
};

void RandomPrograms::expect_equal(Kind kind) {
  using Clock = std::chrono::steady_clock;
  const int64_t wanted = env_number("REFRAIN_FUZZ_PROGRAMS", 1000);
  const uint64_t first = first_seed();
  const auto seconds = static_cast<double>(env_number("REFRAIN_FUZZ_SECONDS", 1 << 30));
  const int64_t enough = env_number("REFRAIN_FUZZ_FAILURES", 5);
  const bool print = env_number("REFRAIN_FUZZ_PRINT", 0) != 0;
  std::map<Verdict, int64_t> verdicts;
  std::map<std::string, int64_t> refusals;
  int64_t programs = 0, refused_too = 0, twins = 0;
  coverage() = Coverage();
  std::cout << fmt::format("{}: {} programs from seed {}\n", name_of(kind), wanted, first) << std::flush;
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  for (; programs < wanted && verdicts[Verdict::kFailed] < enough && elapsed() < seconds; ++programs) {
    const uint64_t seed = first + static_cast<uint64_t>(programs);
    current_seed = seed;
    const Program program = random_program(seed);
    if (print) std::cerr << to_text(program) << '\n';
    forget_dead();
    const Judgement judgement = judge(program, kind);
    ++verdicts[judgement.verdict];
    refused_too += judgement.refused_too;
    twins += judgement.twin_agreed;
    if (judgement.verdict == Verdict::kRefusedByName) ++refusals[judgement.why];
    if (judgement.verdict != Verdict::kFailed) continue;
    ADD_FAILURE() << name_of(kind) << ", seed " << seed << ": " << judgement.why;
    if (env_number("REFRAIN_FUZZ_SHRINK", 20) == 0) continue;
    const Program small = shrink(program, kind, static_cast<double>(env_number("REFRAIN_FUZZ_SHRINK", 20)));
    std::cout << fmt::format("shrunk, seed {}: {}\n{}{}", seed, judge(small, kind).why, to_text(small),
                             to_text(small, kind))
              << std::flush;
  }
  const std::vector<std::pair<std::string, int64_t>> ends = {
      {"programs", programs},
      {"equal", verdicts[Verdict::kEqual]},
      {"equal but for what was refused memory", verdicts[Verdict::kEqualWhereItRan]},
      {"refused by the baseline", verdicts[Verdict::kBaselineRefuses]},
      {"  ours too", refused_too},
      {"  ours as the twin", twins},
      {"refused by name", verdicts[Verdict::kRefusedByName]},
      {"without gradient", verdicts[Verdict::kNoGradient]},
      {"unstable", verdicts[Verdict::kUnstable]},
      {"different", verdicts[Verdict::kFailed]}};
  const auto seen = counts(coverage(), kind);
  const auto list = [](const auto& numbers) {
    std::string text;
    for (const auto& [name, count] : numbers) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, name);
    return text + '\n';
  };
  std::cout << fmt::format("{} in {:.1f} s: ", name_of(kind), elapsed()) << list(ends);
  if (!refusals.empty()) std::cout << "refused by name: " << list(refusals);
  std::cout << list(seen) << std::flush;
  if (const char* file = std::getenv("REFRAIN_FUZZ_COUNTS")) {
    std::ofstream out(file);
    for (const auto& [name, count] : ends) out << count << ' ' << name << '\n';
    for (const auto& [name, count] : refusals) out << count << " refused: " << name << '\n';
    for (const auto& [name, count] : seen) out << count << " - " << name << '\n';
  }
  if (programs < 1000 || verdicts[Verdict::kFailed] > 0 || std::getenv("REFRAIN_FUZZ_WITHOUT") != nullptr) return;
  EXPECT_GT(2 * verdicts[Verdict::kEqual] + 2 * verdicts[Verdict::kEqualWhereItRan], programs)
      << "too many programs tell nothing";
  EXPECT_LE(verdicts[Verdict::kUnstable], 1 + programs / 500) << "too many programs excused";
  EXPECT_GT(3 * coverage().leaks_compared, programs) << "leaks are compared in too few programs";
  for (const auto& [name, count] : seen) EXPECT_GT(count, 0) << name << " never happened";
  const auto exercised = exercised_kinds();
  for (std::string_view step : step_kinds())
    EXPECT_TRUE(std::find(exercised.begin(), exercised.end(), step) != exercised.end()) << step << " never ran";
}

TEST_F(RandomPrograms, OfRegionsAreEqualToTheirBaseline) { expect_equal(Kind::kRegions); }

TEST_F(RandomPrograms, UnderCapsAreEqualToTheirBaseline) { expect_equal(Kind::kCaps); }

TEST_F(RandomPrograms, InBudgetsAreEqualToTheirBaseline) { expect_equal(Kind::kBudgets); }

// Seeds that no test of its own stands for, as long as the generator makes the same programs of them.
TEST_F(RandomPrograms, ThatFailedOnceAreEqual) {
  const std::pair<Kind, uint64_t> failed[] = {
      {Kind::kRegions, 1325654249722},  // a rerun region called its function again in the middle of a custom node
      {Kind::kRegions, 5200000786},     // a leaf that was given history, and a cycle through a rerun region's inputs
      {Kind::kRegions, 5200002533},     // the same, and a graph of an iteration before
      {Kind::kRegions, 8300003744},     // an operator that others need refers to what became a leaf, without a hold
      {Kind::kRegions, 1359190032509},  // the gradient of a tensor that was overwritten without gradients
      {Kind::kRegions, 9000000011},     // a backward inside a rerun function meets what was overwritten since
      {Kind::kRegions, 1345221638570},  // a buffer with history: a backward goes on into the iteration before
      {Kind::kRegions, 9700021231},     // the same, and the loss depends on the clone too
      {Kind::kRegions, 9300007997},     // nodes of three threads, whose numbers a rerun had moved
      {Kind::kRegions, 9300050607},     // a backward in a rerun function, deeper than LibTorch keeps on one thread
      {Kind::kRegions, 9300072909},     // an optimizer wrote what a rerun of the iteration before reads
      {Kind::kRegions, 9400034189},     // an unsafe view of what the twin had copied
      {Kind::kRegions, 9802006199},     // what the graph of a rerun region's input had saved was: another cycle
      {Kind::kRegions, 9800018911},     // a rerun inside forward overwrote what was filled by pointer
      {Kind::kRegions, 9000017313},     // an argument of a rerun region was overwritten by its result: a cycle
      {Kind::kCaps, 1675298666871},     // a step that was refused memory had made a cycle
      {Kind::kCaps, 9100027451},        // such a step had asked for the history of a view
      {Kind::kCaps, 9100036519},        // a raw write into noise that was saved before it was drawn
      {Kind::kCaps, 9300027247},        // the same by another way
      {Kind::kCaps, 9400069610},        // and another
      {Kind::kCaps, 9300067710},        // a step that was refused memory was about to write a leaf
      {Kind::kCaps, 9400022104},        // a rerun ran on and overwrote what had been filled in parts
      {Kind::kCaps, 9400010661},        // the end of a region left what others recompute with without a hold
      {Kind::kCaps, 9400041719},        // a policy's value that lost its bytes, and was recomputed without a hold
      {Kind::kCaps, 9704022720},        // the end of a region dropped a cast that others compute with
      {Kind::kCaps, 9804020451},        // what another tensor of the region was computed from is gone
      {Kind::kCaps, 9705015453},        // what a saved tensor's write made died before the slot moved to it
      {Kind::kCaps, 1864970110255},     // what a graph has saved cannot be pinned
      {Kind::kCaps, 1864970110578},     // what could not be evicted lost its barrier
      {Kind::kCaps, 1917035974101},     // a parked input whose memory was freed while another thread fetched it
      {Kind::kCaps, 1566641660226},     // LibTorch refuses the program, and ours ran out of memory later
      {Kind::kBudgets, 5000001376},     // a raw write into what an `OffloadScope` stored
      {Kind::kBudgets, 5000011391},     // a write without a version inside a region into what a scope stored
      {Kind::kBudgets, 5000011402},     // no memory to bring back what is to be stored
      {Kind::kBudgets, 5000023099},     // a write without a version, then one with
      {Kind::kBudgets,
       5000044284},  // an input fetched by all ranks, whose tensor is alive and written through a pointer
      {Kind::kBudgets, 9000033514},  // such a step had asked for the history of a view
      {Kind::kBudgets, 5000516275},  // a step that was refused memory had overwritten what was saved
      {Kind::kBudgets, 9100028968},  // no memory to store what an operator had overwritten
      {Kind::kBudgets, 5000053142},  // what a plan overwrote again passed for its old bytes
      {Kind::kBudgets, 5000066243},  // a batch norm of its own running variance
      {Kind::kBudgets, 5000538696},  // a result without history that is overwritten
  };
  for (const auto& [kind, seed] : failed) {
    forget_dead();
    const Judgement judgement = judge(random_program(seed), kind);
    EXPECT_NE(judgement.verdict, Verdict::kFailed) << name_of(kind) << ", seed " << seed << ": " << judgement.why;
  }
}

TEST_F(RandomPrograms, AreAFunctionOfTheirSeed) {
  EXPECT_EQ(to_text(random_program(7)), to_text(random_program(7)));
  EXPECT_NE(to_text(random_program(7)), to_text(random_program(8)));
}

}  // namespace
}  // namespace refrain::fuzz
