#include "evict/step_history.h"

#include <algorithm>

namespace refrain::tape {

void StepHistory::predict() {
  predicted_ = nullptr;
  for (const auto& step : known_)
    if (step.matches) predicted_ = &step;
}

void StepHistory::note_operator(const OpTraits& traits) {
  const auto at = current_.operators.size();
  current_.operators.push_back(&traits);
  current_.first_value.push_back(current_.values);
  if (at > 0 && !predicted_) return;
  bool changed = at == 0;
  for (auto& step : known_) {
    if (!step.matches || (at < step.operators.size() && step.operators[at] == &traits)) continue;
    step.matches = false;
    changed = true;
  }
  if (changed) predict();
}

void StepHistory::note_use(Value& value) {
  if (value.history_step == number_)
    current_.uses.push_back({value.history, static_cast<uint32_t>(current_.operators.size())});
}

void StepHistory::note_made(Value& value) {
  value.history_step = number_;
  value.history = current_.values++;
}

void StepHistory::sort_by_value(Step& step) {
  step.first_use.assign(step.values + 1, 0);
  for (const auto& use : step.uses) ++step.first_use[use.value + 1];
  for (size_t i = 1; i < step.first_use.size(); ++i) step.first_use[i] += step.first_use[i - 1];
  std::vector<Use> sorted(step.uses.size());
  auto next = step.first_use;
  for (const auto& use : step.uses) sorted[next[use.value]++] = use;
  step.uses = std::move(sorted);
}

void StepHistory::end_step() {
  ++number_;
  predicted_ = nullptr;
  if (current_.operators.empty()) return;
  const bool is_repeat = std::any_of(known_.begin(), known_.end(), [&](const Step& step) {
    return step.matches && step.operators.size() == current_.operators.size() && step.values == current_.values;
  });
  if (is_repeat) {
    std::erase_if(known_,
                  [&](const Step& step) { return step.matches && step.operators.size() == current_.operators.size(); });
  } else if (known_.size() == kMostSteps) {
    known_.erase(known_.begin());
  }
  sort_by_value(current_);
  known_.push_back(std::exchange(current_, {}));
  for (auto& step : known_) step.matches = true;
}

void StepHistory::clear() {
  known_.clear();
  current_ = {};
  predicted_ = nullptr;
  ++number_;
}

uint64_t StepHistory::distance(const Value& value) const {
  if (!predicted_ || value.history_step != number_ || value.history >= predicted_->values) return kUnknown;
  const auto* const begin = predicted_->uses.data() + predicted_->first_use[value.history];
  const auto* const end = predicted_->uses.data() + predicted_->first_use[value.history + 1];
  const auto now = current_.operators.size();
  const auto* const next = std::upper_bound(begin, end, now, [](size_t at, const Use& use) { return at < use.at; });
  return next == end ? kNever : next->at - now;
}

}  // namespace refrain::tape
