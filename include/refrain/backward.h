#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "refrain/api.h"

namespace refrain {

/// Brackets a backward that runs on another engine than LibTorch's default one.
///
/// For language bindings that call an engine of their own: it tells a `MemoryCap` or `MemoryBudget` what becomes a
/// gradient and where a step ends.
///
///     refrain::BackwardRun run(roots);
///     my_engine.execute(...);
///     run.end();
///
/// - A backward that goes through `torch::autograd::backward`, `grad` or `Tensor::backward` needs none.
/// - A second one inside changes nothing.
/// - Destroyed without `end`, the backward counts as failed.
/// - Without a cap or budget it does nothing.
/// Cost: under a cap, a walk over the graph.
/// Threads: the thread that runs the backward.
class REFRAIN_API BackwardRun {
 public:
  /// Begins the backward.
  /// @param roots        tensors that the backward starts from; those that require no gradient are ignored.
  /// @param accumulates  true if gradients are added to `grad()` of the leaves, false if they are returned to the
  ///                     caller.
  [[nodiscard]] explicit BackwardRun(const std::vector<at::Tensor>& roots, bool accumulates = true);
  ~BackwardRun();
  BackwardRun(const BackwardRun&) = delete;
  BackwardRun& operator=(const BackwardRun&) = delete;

  /// Ends the backward, which has succeeded. Called once.
  /// @throws OutOfMemory  if the plan that runs the step cannot be ended within the limit.
  void end();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace refrain
