#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

namespace refrain {

/// Brackets a backward that is run by another engine than LibTorch's default one, for language bindings that call an engine of
/// their own: it tells a `MemoryCap` or `MemoryBudget` what becomes a gradient and where a step ends.
///
///     refrain::BackwardRun run(roots);
///     my_engine.execute(...);
///     run.end();
///
/// A backward that goes through `torch::autograd::backward`, `grad` or `Tensor::backward` needs none; a second one inside changes
/// nothing. Destroyed without `end`, the backward counts as failed. Without a cap or budget it does nothing.
/// Threads: the one that runs the backward. Cost: under a cap, a walk over the graph.
class BackwardRun {
 public:
  /// @param roots        the tensors that the backward starts from; those that require no gradient are ignored.
  /// @param accumulates  true if gradients are added to `grad()` of the leaves, false if they are returned to the caller.
  explicit BackwardRun(const std::vector<at::Tensor>& roots, bool accumulates = true);
  ~BackwardRun();
  BackwardRun(const BackwardRun&) = delete;
  BackwardRun& operator=(const BackwardRun&) = delete;

  /// The backward has succeeded. Once.
  /// @throws c10::OutOfMemoryError  if the plan that runs the step cannot be ended within the limit.
  void end();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace refrain
