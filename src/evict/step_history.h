#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "tape/value.h"

namespace refrain::tape {

/// Operators of the last steps and the uses of each value, so that the next uses are known in a step that repeats one
/// of them.
/// Source: the next use as distance is Belady's rule, "A study of replacement algorithms", 1966.
///
/// Steps are compared operator by operator from their start, names only: other sizes do not matter. A step that begins
/// unlike all known ones (the first, the one after a validation) has no predictions.
/// Threads: under the tape's lock. Cost: a few stores an operator; memory: 12 bytes an operator and 8 a read, for each of the steps kept.
class StepHistory {
 public:
  static constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
  static constexpr uint64_t kUnknown = kNever - 1;
  static constexpr uint64_t kMostOperators = uint64_t{1} << 20;  ///< of a step; then it is ended, as without backward

  /// Notes an operator that is about to run.
  void note_operator(const OpTraits& traits);
  /// Notes that the operator noted last, or a later one before any other is noted, reads or writes `value`.
  void note_use(Value& value);
  /// Notes that it made `value`.
  void note_made(Value& value);
  void end_step();
  void clear();

  /// Operators until the next use of `value`, >= 1, if the step repeats a known one; `kNever` if there is none. Else
  /// `kUnknown`.
  uint64_t distance(const Value& value) const;
  /// Number of operators of this step so far.
  uint64_t position() const { return current_.operators.size(); }
  bool is_known() const { return predicted_ != nullptr; }

 private:
  static constexpr size_t kMostSteps = 4;

  struct Use {
    uint32_t value, at;
  };
  struct Step {
    std::vector<const OpTraits*> operators;
    std::vector<uint32_t> first_value;  ///< of each operator's outputs
    std::vector<Use> uses;              ///< in order of `at`; by value once the step has ended
    std::vector<uint32_t> first_use;    ///< of each value, once the step has ended
    uint32_t values = 0;
    bool matches = true;  ///< so far, the step that runs
  };
  static void sort_by_value(Step& step);
  void predict();

  std::vector<Step> known_;  ///< oldest first
  Step current_;
  const Step* predicted_ = nullptr;  ///< the newest of those that match
  uint32_t number_ = 1;              ///< of the step that runs
};

}  // namespace refrain::tape
