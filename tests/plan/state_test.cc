#include "plan/state.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "graph/families.h"
#include "graph/random_graph.h"
#include "graph/text.h"

namespace refrain::plan {
namespace {

void expect_exact(const State& state, const std::string& what) {
  const auto& graph = *state.problem().graph;
  const auto schedule = state.schedule();
  const auto run = graph::simulate(graph, schedule);
  ASSERT_EQ(run.error, "") << what << "\n" << graph::to_text(graph) << graph::to_text(graph, schedule);
  ASSERT_EQ(run.peak, std::max<int64_t>(0, state.peak())) << what << "\n"
                                                          << graph::to_text(graph) << graph::to_text(graph, schedule);
  ASSERT_EQ(run.added_ns, state.added_ns()) << what;
  for (OpId p = 0; p <= state.problem().ends; ++p) {
    ASSERT_EQ(run.peaks[static_cast<size_t>(p)], state.profile().most(2 * p, 2 * p + 1))
        << what << " place " << p << "\n"
        << graph::to_text(graph) << graph::to_text(graph, schedule);
  }
}

/// One random change; what is not possible is taken back.
void change(State& state, std::mt19937_64& dice) {
  const auto values = state.problem().items.size();
  for (int tries = 0; tries < 20; ++tries) {
    const auto v = static_cast<ValueId>(dice() % values);
    const auto& touches = state.touches(v);
    if (touches.size() < 2) continue;
    const size_t t = dice() % (touches.size() - 1);
    if (!state.can_drop(v, t) && !state.can_stay(v, t)) continue;
    state.begin();
    const bool done = state.can_drop(v, t) ? state.drop(v, t) : state.stay(v, t);
    if (!done || dice() % 4 == 0)
      state.rollback();
    else
      state.commit();
    return;
  }
}

TEST(State, AgreesWithSimulateUnderRandomChanges) {
  for (uint64_t seed = 0; seed < 1500; ++seed) {
    const auto graph = graph::random_graph(seed);
    const Problem problem(graph);
    State state(problem);
    expect_exact(state, "at first");
    std::mt19937_64 dice(seed);
    for (int i = 0; i < 25; ++i) {
      change(state, dice);
      expect_exact(state, fmt::format("seed {} change {}", seed, i));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(State, AgreesWithSimulateOnFamilies) {
  for (const auto family : graph::kFamilies) {
    const auto graph = graph::make_family(family, 120, 3);
    const Problem problem(graph);
    State state(problem);
    std::mt19937_64 dice(7);
    for (int i = 0; i < 300; ++i) {
      change(state, dice);
      if (i % 10 == 0) expect_exact(state, graph::family_name(family));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(State, TakesNestedChangesBack) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const auto graph = graph::random_graph(seed);
    const Problem problem(graph);
    State state(problem);
    std::mt19937_64 dice(seed);
    for (int i = 0; i < 5; ++i) change(state, dice);
    const auto before = state.schedule();
    const auto peak = state.peak();
    state.begin();
    for (int i = 0; i < 10; ++i) change(state, dice);
    state.begin();
    for (int i = 0; i < 5; ++i) change(state, dice);
    dice() % 2 == 0 ? state.commit() : state.rollback();
    expect_exact(state, fmt::format("seed {}", seed));
    state.rollback();
    EXPECT_EQ(state.schedule(), before) << seed;
    EXPECT_EQ(state.peak(), peak) << seed;
    expect_exact(state, fmt::format("seed {}", seed));
    if (HasFatalFailure()) return;
  }
}

TEST(State, IsTheSameAfterAssigningItsStays) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const auto graph = graph::random_graph(seed);
    const Problem problem(graph);
    State state(problem), other(problem);
    std::mt19937_64 dice(seed);
    for (int i = 0; i < 20; ++i) change(state, dice);
    ASSERT_TRUE(other.assign(state.stays()));
    expect_exact(other, fmt::format("seed {}", seed));
    if (HasFatalFailure()) return;
    EXPECT_LE(other.added_ns(), state.added_ns()) << seed;
  }
}

TEST(State, TakesAnyScheduleThatRuns) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    const auto graph = graph::random_graph(seed);
    const auto schedule = graph::random_schedule(graph, seed);
    const Problem problem(graph);
    State state(problem);
    const auto run = graph::simulate(graph, schedule);
    ASSERT_EQ(run.error, "");
    ASSERT_TRUE(state.assign(State::stays_of(problem, schedule))) << seed;
    expect_exact(state, fmt::format("seed {}", seed));
    if (HasFatalFailure()) return;
    EXPECT_LE(state.added_ns(), run.added_ns) << "seed " << seed << "\n"
                                              << graph::to_text(graph) << graph::to_text(graph, schedule) << "\n"
                                              << graph::to_text(graph, state.schedule());
  }
}

}  // namespace
}  // namespace refrain::plan
