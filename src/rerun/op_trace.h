#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "intercept/op_traits.h"
#include "tape/op_watch.h"

namespace refrain::tape {

/// The operators that ran below autograd on one thread, in order: to compare two runs of a function.
///
/// Of each operator: its name; sizes, strides, dtypes and devices of its tensors; its other arguments; whether its
/// tensors and its thread require gradients; which of its tensors are results of which operators before it, or which
/// inputs. Of each storage that was read from outside: where it is, its version, and a sample of its bytes if they are
/// in host memory. Left out: operators of a backward inside the function, which may be on other threads; and casts,
/// since autocast's cache decides how often they run.
class OpTrace final : public OpWatch {
 public:
  /// @param texts  keep each call as text too, for `text`.
  explicit OpTrace(bool texts) : texts_(texts) {}

  /// Begins, on this thread. @param first  trace of the first run of the function, if this is the second.
  void start(const OpTrace* first);
  /// Adds an input tensor of the function; in the order of the first run.
  void add_input(const at::Tensor& tensor);
  void before(const OpTraits& op, const torch::jit::Stack& stack) override;
  void after(const OpTraits& op, const torch::jit::Stack& stack) override;

  // `other` is the second run. Each returns text, empty if there is nothing.
  /// Names what was read from outside and has been written since the first run read it, by that run too.
  std::string changed_since(const OpTrace& other) const;
  /// Names the first operator that is another, or has other arguments.
  /// @param ends_early  `other` may have fewer operators: it was stopped. @param goes_on  more: this one is not over yet.
  std::string difference(const OpTrace& other, bool ends_early, bool goes_on) const;
  /// Names what was read from outside with other values than in the first run. Assumes that the operators are the same.
  std::string other_values(const OpTrace& other) const;
  std::string text() const;

 private:
  struct Call {
    const OpTraits* op;
    uint64_t tensors;     ///< hash of sizes, strides, dtypes and devices
    uint64_t constants;   ///< hash of the arguments that are not tensors
    uint64_t identities;  ///< hash of the origins of its tensors
    uint64_t gradients;   ///< hash of who requires one
  };
  /// A storage. The weak pointer keeps its address from being reused.
  struct Known {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    c10::VariableVersion counter;
    uint32_t version;       ///< when it was first seen
    bool written = false;   ///< by an operator
    bool old_bytes = true;  ///< bytes from outside, or computed from them
    bool outside = true;    ///< neither an input nor a result
    uint64_t read = 0;      ///< the view that an operator read last
    uint64_t label = 0;     ///< which input or result
  };
  /// Bytes of an input, or from outside, that an operator read.
  struct Read {
    const c10::StorageImpl* storage;
    uint32_t version;     ///< when the storage was first seen
    uint64_t sample;      ///< 0: none
    size_t call, tensor;  ///< the operator, and which of its tensors
  };

  bool is_inside() const;
  Known& know(const at::Tensor& tensor);
  uint64_t note_tensor(const OpTraits& op, const at::Tensor& tensor, size_t number, size_t position,
                       const c10::IValue* arguments);
  std::string from_outside(const Read& read) const;
  std::string name(size_t call) const { return call < text_.size() ? text_[call] : calls_[call].op->name(); }

  bool texts_;
  int32_t graph_task_ = -1;
  const OpTrace* first_ = nullptr;
  std::vector<Call> calls_;
  std::vector<std::string> text_;  ///< of the calls; empty unless `texts_`
  std::vector<Read> reads_;
  std::vector<uint64_t> input_labels_;
  std::unordered_map<const c10::StorageImpl*, Known> known_;
};

/// Excludes operators of this thread from all traces while alive: they are no part of the function.
class UntracedScope {
 public:
  UntracedScope();
  ~UntracedScope();
  UntracedScope(const UntracedScope&) = delete;
  UntracedScope& operator=(const UntracedScope&) = delete;

 private:
  OpWatch* const trace_;
};

/// Writes "Float[2, 3]", with the device if it is not the CPU.
std::string describe(at::ScalarType dtype, at::IntArrayRef sizes, at::Device device);

}  // namespace refrain::tape
