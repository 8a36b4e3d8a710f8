#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/zoo.h"

namespace refrain::cli {

/// One tensor that a strategy did not reproduce.
struct Difference {
  std::string what;  ///< "step 2 gradient of blocks.0.qkv.weight"
  double largest;    ///< largest absolute difference; infinite if shapes differ, or only one is there or finite
};

/// Of one dtype, size and content; or both undefined.
bool is_bit_equal(const torch::Tensor& a, const torch::Tensor& b);

struct VerifyResult {
  std::string strategy;
  int64_t tensors = 0;       ///< compared
  int64_t replayed_ops = 0;  ///< by the tape during the strategy's steps; 0 under "none"
  std::vector<Difference> differences;

  bool is_bit_equal() const { return differences.empty(); }
  double largest_difference() const;
};

/// Trains `steps` steps of the baseline, goes back to the same weights, buffers and generator, and does it again under each of
/// `strategies`. Compares after every step: loss, each gradient, each buffer, the default generator's state; at the end
/// each weight. The model and the generator are left as they were. "none" checks that the baseline repeats itself.
std::vector<VerifyResult> verify_strategies(models::TrainableModel& model, const models::Batch& batch,
                                            const std::vector<std::string>& strategies, int steps);

}  // namespace refrain::cli
