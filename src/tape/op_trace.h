#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "tape/op_traits.h"

namespace refrain::tape {

/// The operators that ran below autograd on one thread, in order: to tell whether two runs of a function did the same.
class OpTrace {
 public:
  /// @param texts       keep each call as text too, for `text`.
  /// @param skip_casts  leave casts out: autocast's cache decides how often they run.
  OpTrace(bool texts, bool skip_casts) : texts_(texts), skip_casts_(skip_casts) {}

  void note(const OpTraits& op, const torch::jit::Stack& stack);
  /// Where `other` first differs, in words; empty if it does not.
  /// @param prefix `other` may end early.
  std::string difference(const OpTrace& other, bool prefix) const;
  /// A tensor that both runs read, neither wrote, and somebody changed since the first; in words, empty if there is none.
  std::string changed_since(const OpTrace& other) const;
  std::string text() const;

 private:
  struct Call {
    const OpTraits* op;
    uint64_t arguments;  ///< hash of the sizes and dtypes of its tensors
    std::string text;
  };
  /// A storage, when it was first seen among the arguments. The weak pointer keeps its address from being used again.
  struct Read {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    c10::VariableVersion counter;
    uint32_t version;
    bool written;  ///< by one of the operators
    size_t call;
  };
  void note_read(const at::Tensor& tensor, bool writes);
  static std::string name(const Call& call) { return call.text.empty() ? call.op->name() : call.text; }

  bool texts_;
  bool skip_casts_;
  std::vector<Call> calls_;
  std::unordered_map<const c10::StorageImpl*, Read> reads_;
};

/// "Float[2, 3]", with the device if it is not the CPU.
std::string describe(at::ScalarType dtype, at::IntArrayRef sizes, at::Device device);

}  // namespace refrain::tape
