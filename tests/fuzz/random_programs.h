#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "region_options.h"

/// Random programs over a pool of tensors, cut into random checkpoint regions, and what their runs must have in common.
///
/// A program is data: steps with a seed each. A step picks its operands among the tensors alive when it runs, by
/// rendezvous hashing on their ids, so a step keeps its operands when an unrelated one is removed: this is what makes
/// shrinking work. Everything is a function of the program's seed.
namespace refrain::fuzz {

struct Step {
  int number = 0;          ///< unique in its program, kept while shrinking: outputs are named after it
  uint64_t seed = 0;       ///< operands and parameters
  const char* kind = "";   ///< key in `step_table()`, or a block kind below
  RegionOptions options;   ///< regions only
  std::vector<Step> body;  ///< blocks only
};

/// Block kinds: their bodies are run inside a region, under another gradient mode, under autocast, or in a scope of the library's.
inline constexpr const char* kRegion = "region";
inline constexpr const char* kThrowingRegion = "throwing_region";
inline constexpr const char* kNoGrad = "no_grad";
inline constexpr const char* kEnableGrad = "enable_grad";
inline constexpr const char* kAutocast = "autocast";
inline constexpr const char* kOffloadScope =
    "offload_scope";                        ///< what autograd saves outside of regions goes to a store
inline constexpr const char* kCap = "cap";  ///< a cap without a limit; sometimes all is evicted before each operator
inline constexpr const char* kBudget = "budget";  ///< unless one is open
/// Steps of even numbers here, of odd ones on a thread of their own, in turns.
inline constexpr const char* kTwoThreads = "two_threads";

bool is_region(const Step& step);

/// One of the backwards that end a program. All but the last retain the graph.
struct Backward {
  enum Kind {
    kBackward,        ///< of the loss, or of one of its terms
    kGrad,            ///< `autograd::grad` with respect to some leaves, and sometimes to a tensor in between
    kDoubleBackward,  ///< that with a graph, and backward of a penalty on it
  };
  Kind kind = kBackward;
  uint64_t seed = 0;       ///< of what, with respect to what
  bool elsewhere = false;  ///< on a thread of its own
};

enum class Optimizer { kNone, kSgd, kMomentum, kAdam };

/// Its steps, its loss and its backwards are an iteration; between two of them an optimizer moves the leaves.
struct Program {
  uint64_t seed = 0;
  int iterations = 1;
  Optimizer optimizer = Optimizer::kNone;
  std::vector<Backward> backwards;  ///< empty: the graph is dropped
  bool drop_handles_first = false;  ///< no tensor but outputs, leaves and buffers is alive during backward
  bool loss_in_region = false;
  RegionOptions loss_options;
  bool poison = false;  ///< fresh allocations hold garbage
  std::vector<Step> steps;
  std::vector<std::pair<int, int>> left_out;  ///< iteration and number of outermost steps that are not run
};

Program random_program(uint64_t seed);

enum class Mode {
  kPlain,       ///< regions are calls; without surroundings it is the baseline
  kCheckpoint,  ///< regions go through `refrain::checkpoint`
  kTwin,  ///< the baseline, but an unaliased tensor is cloned before it is overwritten, so that autograd refuses less
};

/// What happens during a run and is no part of the program: caps and budgets.
class Surroundings {
 public:
  virtual ~Surroundings() = default;
  /// Calls `run`, which is iteration `number`.
  virtual void iteration(int number, const std::function<void()>& run) {
    (void)number;
    run();
  }
  /// Whether an operator may be refused memory.
  virtual bool may_refuse() const { return false; }
  /// Before each step on the first thread, wherever it is, and each backward.
  virtual void before_step() {}
  /// An allocation was refused, or the results are about to be read: from now on nothing is refused.
  virtual void lift() {}
  /// All handles of the program are gone.
  virtual void end() {}
};

/// Bytes of one tensor that two runs must agree on.
struct Record {
  std::string name;
  std::string shape;
  std::string bytes;
  bool gradient = false;
};

struct Outcome {
  std::vector<Record> records;    ///< loss, gradients, buffers, generators, surviving tensors
  std::vector<int> failed_steps;  ///< steps that threw in forward and were skipped
  std::vector<std::pair<int, int>>
      refused_steps;           ///< iteration and number of outermost ones that were refused memory, and left no trace
  bool ran_out = false;        ///< `error` is a refusal after which the run could not go on
  bool forward_ended = false;  ///< the last iteration came as far as backward
  std::string error;           ///< what forward or a backward threw; empty = nothing
  uint64_t picks = 0;          ///< which operands the steps chose: runs that differ here were other programs
  bool has_loss = false;       ///< something required a gradient
  bool made_cycle = false;     ///< in the graph, as plain autograd would: memory may stay
  bool rerun_input_changed = false;          ///< what a rerun region read from outside was written in place later on
  bool has_rerun = false;                    ///< a rerun region kept the graph of its inputs
  bool threads_changed = false;              ///< the number of threads that an operator may use
  bool leaf_got_history = false;             ///< see `Notes`
  bool history_written_after_rerun = false;  ///< likewise
  bool optimizer_skipped = false;            ///< it would have written what a rerun of an earlier iteration reads
  bool nests_deep = false;                   ///< a backward in a backward, deeper than LibTorch keeps on one thread
  bool reshaped_elsewhere = false;           ///< a thread outside of the region changed the shape of a tensor in place
  bool unpinned = false;                     ///< a part of it ran on another thread, and what that reads was not pinned
  int64_t leaked_bytes = 0;                  ///< over the level before the run, after every handle was dropped
  int64_t leaked_ops = 0, leaked_values = 0, leaked_slots = 0, leaked_regions = 0;  ///< from `tape_stats`

  /// The graph of a rerun region's inputs, which the region keeps, may have saved what got history since: with a result of the region
  /// in it that is a cycle.
  bool may_hold_itself() const {
    return has_rerun && (leaf_got_history || rerun_input_changed || history_written_after_rerun);
  }
};

/// One run from fresh inputs and generator states. Never throws on account of the program.
/// @param text  if not null, receives the program as readable lines.
Outcome run(const Program& program, Mode mode, std::string* text = nullptr, Surroundings* surroundings = nullptr);

/// How the results of `other` differ from those of `baseline`; "" if they do not.
/// @param without_gradients  `other` ran out of memory: only what backward does not make is compared.
std::string difference(const Outcome& baseline, const Outcome& other, bool without_gradients = false);
/// The same of gradients that a twin gave. It adds copies, so the sign of a zero or the order of a sum may change; a wrong version
/// would be far off.
std::string twin_difference(const Outcome& twin, const Outcome& other);
/// What `outcome` left behind in memory, or "".
std::string leak(const Outcome& outcome);
/// Whether baselines agree, whatever fresh memory holds.
bool is_stable(const Program& program);

/// What a program is run in, besides its own blocks. Names: "regions", "caps", "budgets".
enum class Kind {
  kRegions,  ///< nothing: its regions and blocks alone
  kCaps,     ///< caps that come and go, some tight, some with all evicted before each operator
  kBudgets,  ///< a budget over all iterations, by a fraction, by bytes, or with a plan of a profiled one; sometimes with caps, in either order
};
/// Made from the program's seed.
/// @param level, peak  of memory in bytes: before the run, and over that in the baseline.
std::unique_ptr<Surroundings> surroundings_of(Kind kind, uint64_t seed, int64_t level, int64_t peak);
/// Whether regions are calls of the library's in this program's run.
Mode mode_of(Kind kind, uint64_t seed);

enum class Verdict {
  kEqual,            ///< the same bytes, nothing leaked
  kEqualWhereItRan,  ///< a step, or the rest of the run, was refused memory; the same bytes without it
  kBaselineRefuses,  ///< LibTorch throws; ours leaked nothing and agrees with the twin if both ended
  kRefusedByName,    ///< ours throws where it says that it does, and leaked nothing
  kNoGradient,       ///< nothing to differentiate, else as equal
  kUnstable,         ///< baselines differ: a kernel of LibTorch reads memory that nobody wrote
  kFailed,
};

struct Judgement {
  Verdict verdict = Verdict::kEqual;
  std::string why;           ///< kFailed: what is wrong; kRefusedByName: which refusal
  bool twin_agreed = false;  ///< kBaselineRefuses: ours gave gradients, and the twin gave the same
  bool refused_too = false;  ///< kBaselineRefuses: ours threw as well
  bool cycles = false;       ///< the baseline leaks (as `a.mul_(a)` makes it): leaks not compared
};

Judgement judge(const Program& program, Kind kind = Kind::kRegions);

/// Drops steps, options of regions, iterations and backwards, and unwraps blocks, while the program still fails; at most `seconds`.
Program shrink(Program program, Kind kind, double seconds);

/// Readable text of a baseline, or of the twin if LibTorch refuses the program.
std::string to_text(const Program& program);
/// Of our run.
std::string to_text(const Program& program, Kind kind);

/// Kinds of ordinary steps, in the order of the table, then of blocks. Excluded by name with REFRAIN_FUZZ_WITHOUT=a,b,c.
std::vector<std::string_view> step_kinds();

/// Kinds of steps that ran to their end at least once, over all runs so far: how a test notices a dead step.
std::vector<std::string_view> exercised_kinds();

/// What our runs have done so far: how a test notices that something never happens.
struct Coverage {
  int64_t regions = 0;  ///< opened with gradients enabled, as all below
  int64_t with_policy = 0;
  int64_t rerun = 0;                                  ///< also those without a policy of their own inside a rerun one
  int64_t strict = 0, debug = 0, run_to_the_end = 0;  ///< of the rerun ones
  int64_t noexcepts = 0;                              ///< likewise
  int64_t rerun_in_replay = 0;
  int64_t policy_in_rerun = 0;
  int64_t rerun_in_rerun = 0;
  int64_t called_again = 0;  ///< functions
  int64_t inputs_stored = 0, inputs_fetched = 0;
  int64_t answers[5] = {0, 0, 0, 0, 0};       ///< of policies, by `CheckpointPolicy`
  int64_t backwards[6] = {0, 0, 0, 0, 0, 0};  ///< iterations by their number of backwards
  int64_t kinds[3] = {0, 0, 0};               ///< backwards by `Backward::Kind`
  int64_t of_a_term = 0;                      ///< backwards of something else than the loss
  int64_t elsewhere = 0;                      ///< backwards on another thread
  int64_t later_iterations = 0;
  int64_t pinned = 0;  ///< pointers that were refused by name until the tensor was pinned
  int64_t caps = 0, nested_caps = 0, ended_early = 0, tortured = 0, evicted = 0, evictions = 0, recomputes = 0;
  int64_t rests = 0, unrecorded_steps = 0;
  int64_t steps_refused = 0, ran_out = 0;
  int64_t budgets = 0, profiled = 0, traced_steps = 0, planned_steps = 0, mismatched_steps = 0;
  int64_t leaks_compared = 0;
};
Coverage& coverage();

}  // namespace refrain::fuzz
