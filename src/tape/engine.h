#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <cstddef>

#include "intercept/running.h"

namespace refrain::tape {

/// Makes sure that autograd asks the tape what to save instead of a tensor: wraps the engine that is LibTorch's default one now,
/// unless that one leads to the tape already. Engines installed later by others are wrapped at the next call. Threads: any.
/// Cost when done: two loads.
void install();

/// One run of an engine on this thread. Under a cap: marks the gradients it makes, and ends the step with the outermost run.
class EngineRun {
 public:
  /// @param accumulates  gradients go into the leaves behind `roots`, not to the caller.
  EngineRun(const torch::autograd::edge_list& roots, bool accumulates);
  /// Without `end`: the run has failed, and the engine is made to let go of what it had left to do.
  ~EngineRun();
  /// It has succeeded. @throws what the end of a step throws.
  void end();
  EngineRun(const EngineRun&) = delete;
  EngineRun& operator=(const EngineRun&) = delete;

 private:
  const BackwardScope backward_;
  bool has_cap_;
  bool is_outermost_;
  bool has_ended_ = false;
};

}  // namespace refrain::tape
