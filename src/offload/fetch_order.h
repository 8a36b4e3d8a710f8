#pragma once

#include <cstdint>
#include <vector>

namespace refrain::offload {

/// Predicts the order in which values will be fetched: as in the step before, where a value is known by its place in
/// the order of storing. After a value that was not fetched then: the ones stored before it, last first. Predictions
/// may be wrong.
class FetchOrder {
 public:
  /// Notes a value that is being stored. @returns its place.
  int64_t stored() { return stored_++; }

  void fetched(int64_t place) {
    if (place >= kMost) return;
    const auto at = static_cast<size_t>(place);
    if (seen_.size() <= at) seen_.resize(at + 1);
    if (seen_[at]) return;
    seen_[at] = true;
    now_.push_back(place);
  }

  /// Ends the step: none of its values is left.
  void step_ended() {
    if (!now_.empty()) {
      last_ = std::move(now_);
      position_.assign(seen_.size(), -1);
      for (size_t i = 0; i < last_.size(); ++i) position_[static_cast<size_t>(last_[i])] = static_cast<int64_t>(i);
    }
    now_.clear();
    seen_.clear();
    stored_ = 0;
  }

  /// Calls `visit` with the places that should follow `place`, until it returns false.
  template <typename Visit>
  void visit_after(int64_t place, const Visit& visit) const {
    const bool is_new = place >= static_cast<int64_t>(position_.size());
    const int64_t position = is_new ? -1 : position_[static_cast<size_t>(place)];
    if (position < 0) {
      while (place > 0 && visit(--place)) continue;
      return;
    }
    for (size_t i = static_cast<size_t>(position) + 1; i < last_.size() && visit(last_[i]); ++i) continue;
  }

 private:
  // a store that never becomes empty
  static constexpr int64_t kMost = int64_t{1} << 20;
  int64_t stored_ = 0;
  std::vector<int64_t> last_, now_;
  std::vector<int64_t> position_;  ///< in `last_`, by place; -1 for none
  std::vector<bool> seen_;         ///< in `now_`, by place
};

}  // namespace refrain::offload
