#include "evict/step_history.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>
#include <random>
#include <vector>

#include "intercept/op_traits.h"

/// Distances to the next use, against a search through the whole step.
namespace refrain_test {
namespace {

using refrain::tape::OpTraits;
using refrain::tape::StepHistory;
using refrain::tape::Value;

const OpTraits& traits_of(const char* name) {
  return refrain::tape::op_traits(c10::Dispatcher::singleton().findSchemaOrThrow(name, ""));
}

/// Of one operator: which one it is, and numbers of the values that it reads. It makes one value.
struct Call {
  const OpTraits* traits;
  std::vector<size_t> reads;
};

std::vector<Call> random_step(std::mt19937& random, size_t operators) {
  const OpTraits* const all[] = {&traits_of("aten::sin"), &traits_of("aten::cos"), &traits_of("aten::exp")};
  std::vector<Call> step;
  for (size_t i = 0; i < operators; ++i) {
    Call call{all[random() % 3], {}};
    for (size_t n = i == 0 ? 0 : random() % 3; n > 0; --n) call.reads.push_back(random() % i);
    step.push_back(std::move(call));
  }
  return step;
}

/// Operators from the end of `at` to the next one that reads the value, that one included.
uint64_t next_use(const std::vector<Call>& step, size_t value, size_t at) {
  for (size_t later = at + 1; later < step.size(); ++later)
    for (const size_t read : step[later].reads)
      if (read == value) return later - at;
  return StepHistory::kNever;
}

/// Runs the step. @param expected  what it repeats up to its first other operator; null if nothing is known of it.
void run(StepHistory& history, const std::vector<Call>& step, const std::vector<Call>* expected) {
  std::vector<std::unique_ptr<Value>> values;
  bool is_known = expected != nullptr;
  for (size_t at = 0; at < step.size(); ++at) {
    history.note_operator(*step[at].traits);
    for (const size_t read : step[at].reads) history.note_use(*values[read]);
    values.push_back(std::make_unique<Value>(torch::empty({1}).storage()));
    history.note_made(*values.back());
    EXPECT_EQ(history.position(), at + 1);
    is_known = is_known && step[at].traits == (*expected)[at].traits;
    EXPECT_EQ(history.is_known(), is_known) << "operator " << at;
    for (size_t value = 0; value <= at; ++value)
      ASSERT_EQ(history.distance(*values[value]), is_known ? next_use(*expected, value, at) : StepHistory::kUnknown)
          << "value " << value << " after operator " << at;
  }
  history.end_step();
}

TEST(StepHistory, KnowsTheNextUseInAStepThatRepeatsOne) {
  std::mt19937 random(7);
  for (int i = 0; i < 20; ++i) {
    StepHistory history;
    const auto step = random_step(random, 40);
    run(history, step, nullptr);
    for (int again = 0; again < 3; ++again) run(history, step, &step);
    history.clear();
    run(history, step, nullptr);
  }
}

TEST(StepHistory, AStepThatTurnsAwayFromTheKnownOneIsUnknownFromThereOn) {
  std::mt19937 random(8);
  for (int i = 0; i < 20; ++i) {
    StepHistory history;
    const auto step = random_step(random, 40);
    run(history, step, nullptr);
    auto other = step;
    other[1 + random() % 38].traits = &traits_of("aten::tanh");
    run(history, other, &step);
    // both are known now: the one that matches counts
    run(history, step, &step);
    run(history, other, &other);
  }
}

}  // namespace
}  // namespace refrain_test
