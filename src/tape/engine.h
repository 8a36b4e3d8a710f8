#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <cstddef>

#include "intercept/running.h"

namespace refrain::tape {

/// Makes autograd ask the tape what to save instead of a tensor: wraps LibTorch's present default engine, unless that
/// leads to the tape already. Engines that others install later are wrapped at the next call. Threads: any. Cost when
/// done: two loads.
void install();

/// A run of an engine on this thread. Under a cap it marks the gradients it makes, and the outermost run ends the step.
class EngineRun {
 public:
  /// @param accumulates  gradients go into the leaves behind `roots`, not to the caller.
  EngineRun(const torch::autograd::edge_list& roots, bool accumulates);
  /// Without `end` the run has failed: makes the engine drop its remaining tasks.
  ~EngineRun();
  /// Notes success. @throws what the end of a step throws.
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
