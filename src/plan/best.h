#pragma once

#include <cstdint>
#include <functional>

#include "plan/blocks.h"
#include "plan/effort.h"
#include "plan/state.h"

namespace refrain::plan {

/// Least m in [0, most] with `fits(m)`, if fitting is monotone; tries about log m of them.
inline void bisect(int64_t most, const std::function<bool(int64_t)>& fits) {
  if (!fits(most)) return;
  int64_t low = -1, high = most;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? high : low) = middle;
  }
}

/// Called for each plan that a solver tries, with the plan in the state.
using Visit = std::function<void()>;

/// Keeps the best of what a solver tries.
class Best {
 public:
  /// @param visit  if not null, `levels` tries all, whatever the budget.
  Best(State& state, int64_t budget, Effort& effort, const Visit& visit = nullptr)
      : state_(state), budget_(budget), effort_(effort), visit_(visit) {}

  /// Tries a plan. @return whether it fits.
  bool attempt(const Stays& stays, bool retain) {
    const int64_t before = state_.steps();
    const bool is_possible = state_.assign(stays, retain);
    effort_.spend(state_.steps() - before + state_.problem().ends);
    if (!is_possible) return false;
    if (visit_) visit_();
    consider();
    return state_.peak() <= budget_;
  }

  /// Tries levels 0 to `most`, of which the higher use less memory: as a search for the lowest that fits; or, if all
  /// are visited, up to 128 of them.
  void levels(int64_t most, const std::function<bool(int64_t)>& fits) {
    if (!visit_) return bisect(most, fits);
    const int64_t stride = most / 128 + 1;
    for (int64_t level = most; level >= 0 && !is_over(); level -= stride) fits(level);
  }

  void consider() {
    const bool fits = state_.peak() <= budget_;
    const bool is_better = !found_         ? true
                           : fits != fits_ ? fits
                           : fits          ? state_.added_ns() < ns_
                                           : state_.peak() < peak_;
    if (!is_better) return;
    found_ = true;
    fits_ = fits;
    ns_ = state_.added_ns();
    peak_ = state_.peak();
    stays_ = state_.stays();
  }

  /// Leaves the best in the state.
  bool finish() {
    if (found_) state_.assign(stays_);
    return found_ && state_.peak() <= budget_;
  }

  bool is_over() const { return effort_.is_over(); }

 private:
  State& state_;
  int64_t budget_;
  Effort& effort_;
  Visit visit_;
  bool found_ = false, fits_ = false;
  int64_t ns_ = 0, peak_ = 0;
  Stays stays_;
};

}  // namespace refrain::plan
