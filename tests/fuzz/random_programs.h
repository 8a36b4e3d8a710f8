#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "region_options.h"

/// Random programs over a pool of tensors, cut into random checkpoint regions, and what their runs must have in common.
///
/// A program is data: steps with a seed each. A step picks its operands among the tensors alive when it runs, by
/// rendezvous hashing on their ids, so a step keeps its operands when an unrelated one is removed: this is what makes
/// shrinking work. Everything is a function of the program's seed.
namespace refrain::fuzz {

struct Step {
  int number = 0;          ///< unique in its program, kept while shrinking: outputs are named after it; negative: is not run, but
                           ///< the program keeps the inputs that it needs
  uint64_t seed = 0;       ///< operands and parameters
  const char* kind = "";   ///< key in `step_table()`, or a block kind below
  RegionOptions options;   ///< regions only
  std::vector<Step> body;  ///< blocks only
};

/// Block kinds: their bodies are run inside a region, under another gradient mode or under autocast.
inline constexpr const char* kRegion = "region";
inline constexpr const char* kThrowingRegion = "throwing_region";
inline constexpr const char* kNoGrad = "no_grad";
inline constexpr const char* kEnableGrad = "enable_grad";
inline constexpr const char* kAutocast = "autocast";

bool is_region(const Step& step);

/// One of the backwards that end a program. All but the last retain the graph.
struct Backward {
  enum Kind {
    kBackward,        ///< of the loss, or of one of its terms
    kGrad,            ///< `autograd::grad` with respect to some leaves, and sometimes to a tensor in between
    kDoubleBackward,  ///< that with a graph, and backward of a penalty on it
  };
  Kind kind = kBackward;
  uint64_t seed = 0;  ///< of what, with respect to what
};

struct Program {
  uint64_t seed = 0;
  std::vector<Backward> backwards;  ///< empty: the graph is dropped
  bool drop_handles_first = false;  ///< no tensor but outputs, leaves and buffers is alive during backward
  bool loss_in_region = false;
  RegionOptions loss_options;
  bool poison = false;  ///< fresh allocations hold garbage
  std::vector<Step> steps;
};

Program random_program(uint64_t seed);

enum class Mode {
  kPlain,       ///< regions are plain calls
  kCheckpoint,  ///< regions go through `refrain::checkpoint`
  kTwin,        ///< plain, but an unaliased tensor is cloned before it is overwritten, so that autograd refuses less
};

/// What happens during a run and is no part of the program: limits on memory that come and go.
class Surroundings {
 public:
  virtual ~Surroundings() = default;
  /// Before each step, wherever it is, and each backward.
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
  std::vector<Record> records;       ///< loss, gradients, buffers, generators, surviving tensors
  std::vector<int> failed_steps;     ///< steps that threw in forward and were skipped
  std::vector<int> refused_steps;    ///< outermost ones that were refused memory, and left no trace
  bool ran_out = false;              ///< `error` is a refusal after which the run could not go on
  bool forward_ended = false;        ///< it came as far as backward
  std::string error;                 ///< what forward or a backward threw; empty = nothing
  uint64_t picks = 0;                ///< which operands the steps chose: runs that differ here were other programs
  bool has_loss = false;             ///< something required a gradient
  bool made_cycle = false;           ///< in the graph, as plain autograd would: memory may stay
  bool rerun_input_changed = false;  ///< what a rerun region read from outside was written in place later on
  int64_t leaked_bytes = 0;          ///< over the level before the run, after every handle was dropped
  int64_t leaked_ops = 0, leaked_values = 0, leaked_slots = 0, leaked_regions = 0;  ///< from `tape_stats`
};

/// One run from fresh inputs and generator states. Never throws on account of the program.
/// @param text  if not null, receives the program as readable lines.
Outcome run(const Program& program, Mode mode, std::string* text = nullptr, Surroundings* surroundings = nullptr);

/// How the results of `other` differ from those of `plain`; "" if they do not.
/// @param without_gradients  `other` ran out of memory: only what backward does not make is compared.
std::string difference(const Outcome& plain, const Outcome& other, bool without_gradients = false);
/// The same of gradients that a twin gave. It adds copies, so the sign of a zero or the order of a sum may change; a wrong version
/// would be far off.
std::string twin_difference(const Outcome& twin, const Outcome& other);
/// What `outcome` left behind in memory, or "".
std::string leak(const Outcome& outcome);
/// Whether plain runs agree, whatever fresh memory holds.
bool is_stable(const Program& program);

enum class Verdict {
  kEqual,       ///< accepted: same bytes, nothing leaked
  kRefused,     ///< plain autograd throws; the checkpointed run leaked nothing and agrees with the twin if both ended
  kChanged,     ///< a rerun region throws, as it must, because what it read from outside was changed; nothing leaked
  kNoGradient,  ///< nothing to differentiate
  kUnstable,    ///< plain runs differ: a kernel of LibTorch reads memory that nobody wrote
  kFailed,
};

struct Judgement {
  Verdict verdict = Verdict::kEqual;
  std::string why;           ///< kFailed only
  bool twin_agreed = false;  ///< kRefused: the checkpointed run gave gradients, and the twin gave the same
  bool refused_too = false;  ///< kRefused: the checkpointed run threw as well
  bool plain_leaks = false;  ///< a cycle of plain autograd's own (as `a.mul_(a)` makes): leaks not compared
};

Judgement judge(const Program& program);

/// Drops steps, options of regions and backwards, and unwraps blocks, while the program still fails; at most `seconds`.
Program shrink(Program program, double seconds);
/// The same for another way to fail.
Program shrink(Program program, double seconds, const std::function<bool(const Program&)>& fails);

/// Readable text of a plain run, or of the twin if plain autograd refuses the program.
std::string to_text(const Program& program);

/// Kinds of ordinary steps, in the order of the table. Excluded by name with REFRAIN_FUZZ_WITHOUT=a,b,c.
std::vector<std::string_view> step_kinds();

/// Kinds of steps that ran to their end at least once, over all runs so far: how a test notices a dead step.
std::vector<std::string_view> exercised_kinds();

/// What checkpointed runs have done so far: how a test notices that something never happens.
struct Coverage {
  int64_t regions = 0;  ///< opened with gradients enabled, as all below
  int64_t with_policy = 0;
  int64_t rerun = 0;                                  ///< also those without a policy of their own inside a rerun one
  int64_t strict = 0, debug = 0, run_to_the_end = 0;  ///< of the rerun ones
  int64_t rerun_in_replay = 0;
  int64_t policy_in_rerun = 0;
  int64_t rerun_in_rerun = 0;
  int64_t called_again = 0;                   ///< functions
  int64_t inputs_stored = 0, inputs_fetched = 0;
  int64_t answers[5] = {0, 0, 0, 0, 0};       ///< of policies, by `CheckpointPolicy`
  int64_t backwards[6] = {0, 0, 0, 0, 0, 0};  ///< programs by their number of backwards
  int64_t kinds[3] = {0, 0, 0};               ///< backwards by `Backward::Kind`
  int64_t of_a_term = 0;                      ///< backwards of something else than the loss
};
Coverage& coverage();

}  // namespace refrain::fuzz
