#include "apps/refrain/schedule.h"

#include <cmath>
#include <numbers>

namespace refrain::cli {

double Schedule::at(int64_t step) const {
  if (step < warmup) return base * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (steps == 0) return base;
  const double done = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
  return least + (base - least) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace refrain::cli
