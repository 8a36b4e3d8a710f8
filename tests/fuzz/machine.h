#pragma once

#include <torch/torch.h>

#include <cmath>
#include <initializer_list>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "random_programs.h"

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
};
using SlotPtr = std::shared_ptr<Slot>;
using Operands = std::initializer_list<SlotPtr>;

/// Thrown by a step that finds no operand: it is skipped, in every mode alike.
struct Skip {};

/// Runs a program; steps see it as their pool of tensors, source of parameters and log.
class Machine {
 public:
  Machine(const Program& program, Mode mode, std::string* text);

  /// Forward, ending, records. The handles live until the machine is destroyed.
  void run(Outcome& outcome);

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
      const double weight = i + 6 >= pool_.size() ? 3 : 1;
      const double u = (static_cast<double>(mix(salt, pool_[i]->id) >> 11) + 1) * 0x1.0p-53;
      const double score = std::log(u) / weight;
      if (best && score <= best_score) continue;
      best = pool_[i];
      best_score = score;
    }
    picks_ = mix(picks_, best ? best->id : 0);
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

  /// A parameter or buffer made before the program started.
  SlotPtr given(const std::string& name);
  SlotPtr given_leaf();

  /// The slot's tensor, about to be overwritten.
  Tensor& writable(const SlotPtr& slot);

  void emit(const char* op, Operands operands, const Tensor& out) { emit_some(op, operands, {out}, 1.0); }
  /// Keeps each output with probability `keep`, the rest is unused.
  void emit_some(const char* op, Operands operands, const std::vector<Tensor>& outs, double keep = 0.7);
  void wrote(const char* op, const SlotPtr& target, Operands operands = {});
  void drop(const SlotPtr& slot);
  template <typename... T>
  void detail(const T&... parts) {
    if (text_ == nullptr) return;
    std::ostringstream out;
    ((out << parts), ...);
    detail_ += (detail_.empty() ? "" : " ") + out.str();
  }

 private:
  void make_inputs();
  void add_input(const std::string& name, at::IntArrayRef sizes, at::ScalarType type, bool grad, bool in_pool);
  void run_steps(const std::vector<Step>& steps);
  void run_step(const Step& step);
  void run_block(const Step& step);
  void run_region(const Step& step);
  void keep_survivors(const Step& step, uint64_t first_serial);
  Tensor loss();
  void end(const Tensor& loss, Outcome& outcome);
  void record(Outcome& outcome, const std::string& name, const Tensor& t, bool gradient);
  void line(const std::string& text);

  const Program& program_;
  Mode mode_;
  std::string* text_;
  std::string detail_;
  int indent_ = 1;
  int step_number_ = 0;
  int outputs_of_step_ = 0;
  std::vector<SlotPtr> pool_;
  std::map<std::string, SlotPtr> given_;
  std::vector<SlotPtr> leaves_;
  std::vector<SlotPtr> buffers_;
  std::map<uint64_t, uint64_t> born_;  // slot id -> serial
  uint64_t serial_ = 0;
  uint64_t picks_ = 0;
  std::vector<int> failed_steps_;
};

/// Plain autograd refuses a backward inside a step: the whole program counts as refused.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct StepSpec {
  const char* kind;
  double weight;
  void (*run)(Machine&);
  const char* needs = "";  ///< given tensors, comma separated
};
const std::vector<StepSpec>& step_table();
std::vector<StepSpec> compute_steps();
std::vector<StepSpec> layer_steps();
std::vector<StepSpec> view_steps();
std::vector<StepSpec> write_steps();
std::vector<StepSpec> custom_steps();

// ---- predicates ----
inline constexpr int64_t kMaxNumel = 1024;
inline bool is_float(const Tensor& t) { return t.is_floating_point() && t.numel() > 0; }
inline bool is_numeric(const Tensor& t) { return (t.is_floating_point() || t.is_complex()) && t.numel() > 0; }
inline bool is_complex(const Tensor& t) { return t.is_complex() && t.numel() > 0; }
inline bool is_index(const Tensor& t) { return t.scalar_type() == at::kLong && t.numel() > 0; }
inline bool is_single(const Tensor& t) { return t.scalar_type() == at::kFloat && t.numel() > 0; }

/// Whether two elements may share memory (expand, unfold, as_strided).
bool may_overlap(const Tensor& t);
/// Float, without overlap, and not refused by autograd at once.
bool is_writable(const Tensor& t);
bool broadcasts_to(const Tensor& from, at::IntArrayRef to);
bool broadcast_together(const Tensor& a, const Tensor& b);

}  // namespace refrain::fuzz
