#pragma once

#include <cstdint>

namespace refrain::cli {

/// The learning rate over a run. It rises in equal parts over the first `warmup` steps; then it stays, or falls along
/// half a cosine to `least`, which it would reach one step after the last.
/// Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, without restarts.
struct Schedule {
  double base = 0.0, least = 0.0;
  int64_t warmup = 0;
  int64_t steps = 0;  ///< of the run; 0: it stays
  /// @param step  from 0.
  double at(int64_t step) const;
};

}  // namespace refrain::cli
