#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "refrain/refrain.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

/// The vocabulary of the tape's tests: a *program* is a function of a `Trial`. It is run twice, plain and under
/// `checkpoint`, from identical inputs and generators; everything it leaves behind must be equal as bytes.
namespace refrain_test {

using torch::Tensor;
using Tensors = std::vector<Tensor>;

/// The bytes of a tensor of any layout, with everything else that makes two tensors equal in front.
inline std::string bytes_of(const Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  torch::NoGradGuard no_grad;
  Tensor t = tensor.detach();
  std::ostringstream head;
  if (t.is_nested()) t = t.to_padded_tensor(0);
  head << t.layout() << ' ' << t.scalar_type() << ' ' << t.sizes() << '\n';
  if (t.layout() != at::kStrided) t = t.to_dense();
  if (t._is_zerotensor()) t = t.clone();  // it has a storage, but no bytes
  t = t.resolve_conj().resolve_neg().contiguous();
  return head.str() + std::string(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
}

inline void expect_bit_equal(const Tensor& expected, const Tensor& actual, const std::string& what = "tensor") {
  EXPECT_TRUE(bytes_of(expected) == bytes_of(actual)) << what << " differs\nexpected\n"
                                                      << expected << "\ngot\n"
                                                      << actual;
}

/// The live numbers of the tape, for comparison.
struct Live {
  int64_t ops, values, slots, regions, copied_bytes;
  bool operator==(const Live&) const = default;
};
inline std::ostream& operator<<(std::ostream& out, const Live& n) {
  return out << "{ops " << n.ops << ", values " << n.values << ", slots " << n.slots << ", regions " << n.regions
             << ", copied bytes " << n.copied_bytes << "}";
}
inline Live live() {
  const refrain::TapeStats s = refrain::tape_stats();
  return {s.live_ops, s.live_values, s.live_slots, s.live_regions, s.leaf_copy_bytes};
}

/// After an exception in backward the engine's ready queue keeps tensors until the next backward: give it one.
inline void flush_engine() { torch::ones({1}, torch::requires_grad()).sum().backward(); }

/// Where LibTorch itself leaks, so that LeakSanitizer does not look: `a.mul_(a)` where autograd keeps both leaves a graph that
/// holds itself, with hooks and without.
class LibTorchLeaks {
#if defined(__SANITIZE_ADDRESS__)
 public:
  LibTorchLeaks() { __lsan_disable(); }
  ~LibTorchLeaks() { __lsan_enable(); }
#else
 public:
  LibTorchLeaks() {}  // as a scope: declared and not used
#endif
};

/// Writes over the heap blocks that freed tensors of up to `bytes` left: stale bytes must not pass for right ones.
inline void poison_heap(int64_t bytes = 4096) {
  std::vector<Tensor> blocks;
  for (int64_t n = 4; n <= bytes; n *= 2) {
    for (int i = 0; i < 16; ++i) blocks.push_back(torch::full({n / 4}, -12345.0F));
  }
}

/// One execution of a program.
class Trial {
 public:
  explicit Trial(bool recorded, refrain::CheckpointOptions options = {})
      : recorded_(recorded), options_(std::move(options)), own_(at::make_generator<at::CPUGeneratorImpl>(11)) {
    own_.set_current_seed(11);
  }

  bool recorded() const { return recorded_; }
  /// Of `region`; to add to for `region_with`.
  const refrain::CheckpointOptions& options() const { return options_; }

  /// `fn(args...)`, in a region if this is the recorded run.
  template <typename F, typename... Args>
  decltype(auto) region(F&& fn, Args&&... args) {
    return region_with(options_, std::forward<F>(fn), std::forward<Args>(args)...);
  }

  template <typename F, typename... Args>
  decltype(auto) region_with(const refrain::CheckpointOptions& options, F&& fn, Args&&... args) {
    if (recorded_) return refrain::checkpoint(options, std::forward<F>(fn), std::forward<Args>(args)...);
    return refrain::detail::call(std::forward<F>(fn), std::forward<Args>(args)...);
  }

  /// The same numbers in every run; from a private generator, so that the default one is the program's alone.
  Tensor input(at::IntArrayRef sizes) { return torch::randn(sizes, input_generator_, torch::kFloat); }
  Tensor param(at::IntArrayRef sizes) { return track(input(sizes)); }
  Tensor track(const Tensor& leaf) {
    params_.push_back(leaf.detach().requires_grad_());
    return params_.back();
  }

  at::Generator& own_generator() { return own_; }

  void note(const std::string& name, const Tensor& value) { notes_.emplace_back(name, bytes_of(value)); }

  /// Everything the run left behind: notes, gradients, both generators and the next number drawn.
  std::vector<std::pair<std::string, std::string>> outcome() {
    for (size_t i = 0; i < params_.size(); ++i) {
      note("param " + std::to_string(i), params_[i]);
      note("gradient " + std::to_string(i), params_[i].grad());
    }
    note("default generator", at::detail::getDefaultCPUGenerator().get_state());
    note("own generator", own_.get_state());
    note("next random number", torch::rand({3}));
    return std::move(notes_);
  }

 private:
  bool recorded_;
  refrain::CheckpointOptions options_;
  at::Generator own_;
  at::Generator input_generator_ = at::make_generator<at::CPUGeneratorImpl>(5);
  Tensors params_;
  std::vector<std::pair<std::string, std::string>> notes_;
};

/// Returns the loss for `execute` to call backward on, or an undefined tensor if it did all it wanted.
using Program = std::function<Tensor(Trial&)>;

inline std::vector<std::pair<std::string, std::string>> execute(const Program& program, bool recorded,
                                                                const refrain::CheckpointOptions& options = {}) {
  torch::manual_seed(7);
  Trial run(recorded, options);
  Tensor loss = program(run);
  if (loss.defined()) {
    run.note("loss", loss);
    poison_heap();
    loss.backward();
  }
  loss.reset();
  return run.outcome();
}

/// What the recorded run added to the counters.
struct Counts {
  int64_t recorded, replayed, replay_passes, leaf_copies, reruns;
};

/// Runs `expected` plain and `program` recorded; compares all that they leave behind and that the tape is empty again.
inline Counts expect_same_as(const Program& expected, const Program& program,
                             const refrain::CheckpointOptions& options = {}) {
  const auto want = execute(expected, false);
  const Live before = live();
  const refrain::TapeStats start = refrain::tape_stats();
  const auto got = execute(program, true, options);
  const refrain::TapeStats end = refrain::tape_stats();
  EXPECT_EQ(live(), before) << "the tape still holds something after the program";
  EXPECT_GT(end.recorded_ops + end.reruns, start.recorded_ops + start.reruns)
      << "nothing was recorded or run again: this test tests nothing";
  EXPECT_EQ(want.size(), got.size());
  for (size_t i = 0; i < std::min(want.size(), got.size()); ++i) {
    EXPECT_EQ(want[i].first, got[i].first);
    EXPECT_TRUE(want[i].second == got[i].second) << "`" << want[i].first << "` differs from the plain run";
  }
  return {end.recorded_ops - start.recorded_ops, end.replayed_ops - start.replayed_ops,
          end.replay_passes - start.replay_passes, end.leaf_copies - start.leaf_copies, end.reruns - start.reruns};
}

inline Counts expect_same(const Program& program, const refrain::CheckpointOptions& options = {}) {
  return expect_same_as(program, program, options);
}

/// Plain autograd refuses `program` (checked) because a value computed inside was overwritten; the tape must give the
/// gradient of `twin`, which says the same without writing in place.
inline void expect_old_value(const Program& twin, const Program& program) {
  EXPECT_THROW(execute(program, false), std::exception) << "plain accepts this: use expect_same";
  flush_engine();
  expect_same_as(twin, program);
}

/// The message of the `Error` that `fn` throws; fails if it throws nothing or something else.
template <typename Error, typename F>
std::string message_of(F&& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << "another exception than expected: " << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// Every test leaves the tape as it found it, whatever happened in between.
class TapeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    refrain::set_leaf_write_policy(refrain::LeafWritePolicy::kCopy);
    torch::manual_seed(7);
    before_ = live();
    refrain::reset_tape_counters();
  }
  void TearDown() override {
    flush_engine();
    refrain::set_leaf_write_policy(refrain::LeafWritePolicy::kCopy);
    EXPECT_EQ(live(), before_) << "the tape still holds something after the test";
  }

 private:
  Live before_{};
};

}  // namespace refrain_test
