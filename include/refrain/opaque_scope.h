#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "refrain/api.h"

namespace refrain {

/// Runs code that reads and writes tensors through raw pointers, such as compiled kernels, inside of a region, under a
/// cap or in a budget.
///
///     {
///       refrain::OpaqueScope opaque({x, weight}, {running_mean});
///       y = compiled_block(x, weight, running_mean);
///     }
///
/// While alive: `reads` and `writes` are resident and stay in place; what `writes` held before is kept where recorded
/// operators have read it; operators that the code calls on this thread are not recorded.
///
/// - What the code makes is as a tensor from outside to the tape: kept while backward needs it, and never recomputed.
///   So a region around opaque code saves nothing inside of it.
/// - A tensor that the code writes and that is not among `writes` is the hazard of docs/guide/pitfalls.md, "Memory
///   refilled through pointers".
/// Cost: some microseconds, and copies of what is overwritten.
/// Threads: destroyed on the thread that made it, scopes in reverse order.
class REFRAIN_API OpaqueScope {
 public:
  /// Undefined tensors, and those without a plain storage, are ignored.
  /// @throws  as an operator would that reads the tensors.
  [[nodiscard]] explicit OpaqueScope(const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes = {});
  ~OpaqueScope();
  OpaqueScope(const OpaqueScope&) = delete;
  OpaqueScope& operator=(const OpaqueScope&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace refrain
