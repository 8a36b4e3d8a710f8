#pragma once

#include <ATen/SequenceNumber.h>
#include <torch/torch.h>

#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "random_programs.h"
#include "refrain/checkpoint.h"
#include "refrain/offload.h"

namespace refrain::fuzz {

using at::Tensor;

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t z = a * 0x9E3779B97F4A7C15ull + b + 0x632BE59BD9B4E019ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  uint64_t next() { return mix(state_++, 0x51ED27); }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  bool chance(double p) { return uniform() < p; }

 private:
  uint64_t state_;
};

/// A tensor handle of the program.
struct Slot {
  uint64_t id = 0;
  std::string name;
  Tensor t;
  bool buffer = false;
  /// In the twin: a clone that was overwritten without gradients. What read the tensor before does not depend on it.
  bool overwritten_without_grad = false;
};
using SlotPtr = std::shared_ptr<Slot>;
using Operands = std::initializer_list<SlotPtr>;

/// Thrown by a step that finds no operand: it is skipped, in every mode alike.
struct Skip {};

// ---- predicates ----
inline constexpr int64_t kMaxNumel = 1024;
inline bool is_float(const Tensor& t) { return t.is_floating_point() && t.numel() > 0; }
inline bool is_numeric(const Tensor& t) { return (t.is_floating_point() || t.is_complex()) && t.numel() > 0; }
inline bool is_complex(const Tensor& t) { return t.is_complex() && t.numel() > 0; }
inline bool is_index(const Tensor& t) { return t.scalar_type() == at::kLong && t.numel() > 0; }
inline bool is_single(const Tensor& t) { return t.scalar_type() == at::kFloat && t.numel() > 0; }

/// As `is_alias_of`, which reads data pointers.
inline bool share_storage(const Tensor& a, const Tensor& b) {
  return a.storage().unsafeGetStorageImpl() == b.storage().unsafeGetStorageImpl();
}
/// Whether two elements may share memory (expand, unfold, as_strided).
bool may_overlap(const Tensor& t);
/// Float, without overlap, and not refused by autograd at once.
bool is_writable(const Tensor& t);
std::string shape_of(const Tensor& t);
bool broadcasts_to(const Tensor& from, at::IntArrayRef to);
bool broadcast_together(const Tensor& a, const Tensor& b);

/// A tensor that a rerun region read from outside, without its bytes.
struct Watched {
  explicit Watched(const Tensor& t);
  bool changed() const { return counter.current_version() != version; }
  bool shares_memory(const Tensor& t) const;

  c10::VariableVersion counter;
  uint32_t version;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
};

/// A view of something overwritten in place becomes what it is, `is_leaf` or not, when it is first asked.
void settle_history(const Tensor& t);

/// Autograd numbers nodes on each thread from zero, and adds up gradients in the order of those numbers. A rerun makes nodes too, so each
/// thread of a program has a range of its own, below those of the thread that runs it: docs/guide/pitfalls.md.
class NodeNumbers {
 public:
  /// On the thread that runs a program, before it does.
  static void begin_program() {
    skip_to(kThreads * kRange);
    threads_ = 0;
  }
  /// First on a thread that the program starts.
  static void begin_thread() { skip_to(kRange * (threads_++ % kThreads)); }

 private:
  static constexpr uint64_t kRange = 2000, kThreads = 100;
  static void skip_to(uint64_t number) {
    while (at::sequence_number::peek() < number) at::sequence_number::get_and_increment();
  }
  static inline std::atomic<uint64_t> threads_{0};
};

/// The regions that are open around a step.
struct Enclosing {
  bool replay = false;
  bool rerun = false;
  bool innermost_reruns = false;
};

/// What the steps did so far.
struct Notes {
  uint64_t picks = 0;
  std::vector<int> failed_steps;
  bool made_cycle = false;
  /// Writes to what requires a gradient. What autograd saved of it before is the tensor itself, whose history then leads to what it
  /// saved: a cycle until a backward comes by, which none does where the step ends with an error.
  int64_t histories_written = 0;
  /// A leaf was overwritten by what requires a gradient. Autograd saves leaves as they are, so what was saved before has that history too: a
  /// backward goes on into an iteration before, and a rerun region, which keeps the graph of its inputs, may be part of a cycle.
  bool leaf_got_history = false;
  /// A write to what requires a gradient after a rerun region returned: a result of the region may be in it.
  bool history_written_after_rerun = false;
  bool nests_deep = false;          ///< a backward in a backward, deeper than LibTorch keeps on one thread
  bool unpinned = false;            ///< there were two threads, and what the other one reads was not pinned
  bool reshaped_elsewhere = false;  ///< the other one changed the shape of a tensor in place
  std::vector<Watched> read_by_rerun;
  std::vector<Watched> cut_unsafely;
  std::vector<Watched> made_by_rerun;  ///< what those regions returned
  std::vector<Watched> captured;       ///< by the functions of rerun regions

  void add(const Notes& other);
};

/// A kind of step, or of block, ran to its end.
void note_exercised(const char* kind);

class PureBody;
class Turns;

/// Runs steps; they see it as their pool of tensors, source of parameters and log.
class Machine {
 public:
  Machine(Mode mode, std::string* text, Surroundings* surroundings = nullptr)
      : mode_(mode),
        text_(text),
        surroundings_(surroundings),
        may_be_refused_(surroundings != nullptr && surroundings->may_refuse()) {}
  /// For one call of a rerun region's function: knows nothing but what that is given.
  Machine(const PureBody& body, const std::vector<Tensor>& arguments, const std::vector<at::Generator>& own);
  /// For one of two threads that take turns: knows what `parent` does.
  Machine(const Machine& parent, Turns& turns, int thread);
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // ---- for steps ----
  Rng rng{0};
  std::vector<at::Generator> generators;  ///< the program's own

  template <typename Predicate>
  SlotPtr pick(Predicate accepts) {
    const uint64_t salt = rng.next();
    SlotPtr best;
    double best_score = 0;
    for (size_t i = 0; i < pool_.size(); ++i) {
      if (!accepts(pool_[i]->t)) continue;
      const double score = draw(salt, i);
      if (best && score <= best_score) continue;
      best = pool_[i];
      best_score = score;
    }
    notes_->picks = mix(notes_->picks, best ? best->id : 0);
    if (!best) throw Skip{};
    return best;
  }
  template <typename Predicate>
  SlotPtr pick_if_any(Predicate accepts) {
    try {
      return pick(accepts);
    } catch (const Skip&) {
      return nullptr;
    }
  }
  /// One that may be overwritten: in a rerun region only what was made in it.
  template <typename Predicate>
  SlotPtr pick_to_write(Predicate accepts) {
    return pick([&](const Tensor& t) { return is_writable(t) && may_write(t) && accepts(t); });
  }
  SlotPtr pick_to_write() {
    return pick_to_write([](const Tensor&) { return true; });
  }

  /// A parameter or buffer made before the program started.
  SlotPtr given(const std::string& name);
  SlotPtr given_leaf();

  /// The slot's tensor, about to be overwritten.
  Tensor& writable(const SlotPtr& slot);
  /// Whether plain calls and second calls of functions read the same after a write to `t` that bumps its version.
  bool may_write(const Tensor& t) const;
  /// `x` was cut into tensors of its memory with version counters of their own.
  void cut_unsafely(const Tensor& x) { notes_->cut_unsafely.emplace_back(x); }
  /// Whether a rerun region would not notice a write to `t` that bumps no version.
  bool known_to_rerun(const Tensor& t) const;

  void emit(const char* op, Operands operands, const Tensor& out) { emit_some(op, operands, {out}, 1.0); }
  /// Keeps each output with probability `keep`, the rest is unused.
  void emit_some(const char* op, Operands operands, const std::vector<Tensor>& outs, double keep = 0.7);
  void wrote(const char* op, const SlotPtr& target, Operands operands = {});
  void drop(const SlotPtr& slot);

  /// A fresh pointer to the elements of `t`, to write through at once. Where a cap says that it has evicted them, after pinning.
  float* pointer_to(const Tensor& t);
  /// Calls `use`; where a cap says that it has evicted what that reads, pins `tensors` and calls it once more.
  void use_pointers(const std::vector<Tensor>& tensors, const std::function<void()>& use);
  /// Memory that LibTorch knows nothing of, with a tensor over it: one for the whole program.
  std::vector<float>& frame() { return *frame_; }
  bool is_twin() const { return mode_ == Mode::kTwin; }
  /// Whether regions go through the library in this run.
  bool checkpoints() const { return mode_ == Mode::kCheckpoint; }
  /// The number of threads is another than before.
  void threads_changed() { *threads_changed_ = true; }
  /// The shape of a tensor was changed in place.
  void reshaped() { notes_->reshaped_elsewhere |= thread_ == 1; }
  void nests_deep() { notes_->nests_deep = true; }
  /// A tensor with gradients is an argument of its own overwriting: plain autograd makes a cycle.
  void made_cycle() { notes_->made_cycle = true; }
  template <typename... T>
  void detail(const T&... parts) {
    if (text_ == nullptr) return;
    std::ostringstream out;
    ((out << parts), ...);
    detail_ += (detail_.empty() ? "" : " ") + out.str();
  }

 protected:
  void run_steps(const std::vector<Step>& steps);
  void run_step(const Step& step);
  void line(const std::string& text);
  bool is_leaf(const SlotPtr& slot) const;
  /// Whether blocks open the scopes that they stand for.
  bool uses_library() const { return mode_ == Mode::kCheckpoint || surroundings_ != nullptr; }
  /// Calls `fn`, in a region where the mode says so.
  template <typename F, typename... Args>
  auto call(const RegionOptions& options, const F& fn, Args... args) {
    if (mode_ != Mode::kCheckpoint) return fn(args...);
    return refrain::checkpoint(to_checkpoint_options(options), fn, std::move(args)...);
  }

  const Mode mode_;
  std::string* const text_;
  Surroundings* const surroundings_;
  const bool may_be_refused_;  ///< memory, on any of its threads
  void put_back();
  std::vector<std::pair<SlotPtr, Tensor>> replaced_;  ///< by copies for the step that runs: what was there
  std::vector<SlotPtr> pool_;
  std::map<std::string, SlotPtr> given_;
  std::vector<SlotPtr> leaves_;
  std::vector<SlotPtr> buffers_;
  std::shared_ptr<Notes> notes_ = std::make_shared<Notes>();
  Enclosing enclosing_;
  int indent_ = 1;
  std::shared_ptr<std::vector<float>> frame_ = std::make_shared<std::vector<float>>(12);
  std::shared_ptr<bool> threads_changed_ = std::make_shared<bool>(false);

 private:
  friend class PureBody;

  double draw(uint64_t salt, size_t pool_index) const;
  void run_block(const Step& step);
  void run_region(const Step& step);
  void run_pure_region(const Step& step);
  void run_two_threads(const Step& step);
  void run_half(const Step& step, bool under_cap, std::exception_ptr& thrown);
  std::vector<Tensor> run_body(const Step& step, std::vector<SlotPtr>& returned);
  std::vector<SlotPtr> choose_inputs(const Step& step);
  void keep_survivors(const Step& step, uint64_t first_serial);
  void add(const SlotPtr& slot);

  std::string detail_;
  int step_number_ = 0;
  bool is_leaf_written_ = false;
  int outputs_of_step_ = 0;
  std::map<uint64_t, uint64_t> born_;  // slot id -> serial
  uint64_t serial_ = 0;
  bool in_rerun_ = false;
  std::vector<Watched> outside_;  // of the rerun region whose function this machine runs
  Turns* turns_ = nullptr;
  int thread_ = 0;
};

/// The body of a region as a function that may be called again: each call runs in a machine of its own.
class PureBody {
 public:
  struct Input {
    uint64_t id;
    std::string name;
    bool in_pool;
    Tensor captured;  ///< undefined: comes as an argument
  };
  /// What the program takes over from the first call, besides the tensors.
  struct Report {
    std::vector<std::pair<uint64_t, std::string>> results;
    Notes notes;
  };

  std::vector<Tensor> operator()(const std::vector<Tensor>& arguments, const std::vector<at::Generator>& own) const;

  const Step* step = nullptr;  ///< of the program, which outlives the graph
  Mode mode = Mode::kPlain;
  std::string* text = nullptr;
  Surroundings* surroundings = nullptr;
  bool may_be_refused = false;
  int indent = 1;
  Enclosing enclosing;
  std::shared_ptr<std::vector<float>> frame;
  std::shared_ptr<bool> threads_changed;
  std::vector<Input> inputs;
  std::shared_ptr<Report> report = std::make_shared<Report>();
};

/// Plain autograd refuses a backward inside a step: the whole program counts as refused.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// How the error of a backward begins that runs inside a region's function when that is called again.
inline constexpr const char* kInnerGradAgain = "inner grad, called again: ";

/// Whether a step may be run again by a second call of a region's function.
enum class Calls {
  kAny,
  kOnce,  ///< it writes what is outside the region, or behind autograd's back: never in a rerun region
};

struct StepSpec {
  const char* kind;
  double weight;
  void (*run)(Machine&);
  const char* needs = "";  ///< given tensors, comma separated
  Calls calls = Calls::kAny;
};
const std::vector<StepSpec>& step_table();
const StepSpec* find_step(const char* kind);
/// Names of the given tensors that these steps need.
std::set<std::string> needs_of(const std::vector<Step>& steps);
std::vector<StepSpec> compute_steps();
std::vector<StepSpec> layer_steps();
std::vector<StepSpec> view_steps();
std::vector<StepSpec> write_steps();
std::vector<StepSpec> custom_steps();
std::vector<StepSpec> mark_steps();
std::vector<StepSpec> outside_steps();

/// Where an `OffloadScope` of the programs puts things: a disk in memory.
const OffloadStore& scope_store();
/// Budgets that are open now.
int& open_budgets();

}  // namespace refrain::fuzz
