#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/timeline.h"

/// Where the memory of a training step goes, and from which batch on activations are the larger part.
namespace refrain {

/// Bytes of a step by what they are for. Buffers and input, small as a rule, are in none of them.
struct MemoryParts {
  Bytes parameters = 0;
  Bytes gradients = 0;
  Bytes optimizer_states = 0;
  Bytes activations = 0;  ///< kept by forward for backward
  Bytes temporaries = 0;  ///< everything else that is allocated and freed; 0 in estimates

  /// Sums the fixed cost, which a step has at any batch.
  /// @return bytes of all parts but activations and temporaries.
  Bytes fixed() const { return parameters + gradients + optimizer_states; }
};

/// Describes what forward keeps as a straight line over the batch. Exact where the model treats its examples alike.
struct REFRAIN_API ActivationCost {
  double per_example = 0;  ///< bytes
  double fixed = 0;        ///< bytes at batch 0

  /// Evaluates the line.
  /// @return bytes that forward keeps at `batch` examples.
  [[nodiscard]] Bytes at(int64_t batch) const;

  /// Finds the batch from which on activations exceed `bytes`.
  /// @return smallest batch >= 1 at which activations are more than `bytes`; none if they never are.
  [[nodiscard]] std::optional<int64_t> first_batch_exceeding(Bytes bytes) const;
};

/// Fits the line through two forwards of small batches.
///
/// @param loss   runs forward for a batch of this size, in the model's training mode, and returns the result to call
///               backward on. What it allocates outside the graph, such as the input, is not counted.
/// @param small  the first batch, >= 1.
/// @param large  the second batch, > `small`.
/// @throws InvalidArgument  on other batches; also what `loss` throws.
/// Cost: two forwards. Threads: forward runs on the calling thread.
REFRAIN_API ActivationCost measure_activations(const std::function<at::Tensor(int64_t batch)>& loss, int64_t small = 2,
                                               int64_t large = 4);

/// Estimates the fixed cost of a step without running one.
///
/// @param optimizer  SGD, Adam, AdamW, RMSprop or Adagrad of LibTorch.
/// @return bytes of the parameters, of the gradients of those that require one, and of what the optimizer will hold
///         once it has stepped them all.
/// @throws InvalidArgument  for another optimizer.
[[nodiscard]] REFRAIN_API MemoryParts estimate_fixed(const torch::nn::Module& module,
                                                     const torch::optim::Optimizer& optimizer);

/// Checks that what a step needs at any batch and under any strategy fits a limit: parameters, buffers, gradients and
/// optimizer state.
/// @param optimizer  as for `estimate_fixed`.
/// @param limit      bytes of tensors, absolute.
/// @param name       how the message calls the limit.
/// @return the sum of those parts, in bytes.
/// @throws InvalidArgument  if it is not below `limit`: names the first part that does not fit, and by how much.
REFRAIN_API Bytes check_fixed_cost(const torch::nn::Module& module, const torch::optim::Optimizer& optimizer,
                                   Bytes limit, std::string_view name = "[refrain::check_fixed_cost] limit");

/// Splits the memory of a measured step.
///
/// @param step  timeline of a whole step.
/// @return each part's own highest level, so that they need not sum to the peak; `temporaries` is what the peak has
///         beyond the parts, buffers and input alive at it.
[[nodiscard]] REFRAIN_API MemoryParts measured_parts(const MemoryTimelineReport& step);

}  // namespace refrain
