#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "refrain/timeline.h"

/// Where the memory of a training step goes, and from which batch on activations are the larger part.
namespace refrain {

/// Bytes of a step by what they are for. Buffers and input, small as a rule, are in none of them.
struct MemoryParts {
  Bytes parameters = 0, gradients = 0, optimizer_states = 0;
  Bytes activations = 0;  ///< kept by forward for backward
  Bytes temporaries = 0;  ///< everything else that comes and goes; estimates leave it 0
  /// What a step costs at any batch: all but activations and temporaries.
  Bytes fixed() const { return parameters + gradients + optimizer_states; }
};

/// What forward keeps as a straight line over the batch: exact where the model treats its examples alike.
struct ActivationCost {
  double per_example = 0;  ///< bytes
  double fixed = 0;        ///< bytes at batch 0
  Bytes at(int64_t batch) const;
  /// Smallest batch >= 1 at which activations are more than `bytes`; none if they never are.
  std::optional<int64_t> first_batch_exceeding(Bytes bytes) const;
};

/// Fits the line through two forwards, of small batches.
/// @param loss  runs forward for a batch of this size, in the model's training mode, and returns the result to call
///              backward on. What it allocates outside the graph, such as the input, is not counted.
/// @param small, large  the two batches, 1 <= small < large.
/// @throws InvalidArgument on other batches; what `loss` throws. Cost: two forwards. Threads: forward on this one.
ActivationCost measure_activations(const std::function<at::Tensor(int64_t batch)>& loss, int64_t small = 2,
                                   int64_t large = 4);

/// Parameters, gradients of those that require one, and what the optimizer will hold once it has stepped them all.
/// @param optimizer  SGD, Adam, AdamW, RMSprop or Adagrad of LibTorch. @throws InvalidArgument for another.
MemoryParts estimate_fixed(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer);

/// Each part's own highest level in a timeline of a whole step, so that they need not sum to its peak; `temporaries` is what
/// the peak has beyond the parts, buffers and input alive at it.
MemoryParts measured_parts(const MemoryTimelineReport& step);

}  // namespace refrain
