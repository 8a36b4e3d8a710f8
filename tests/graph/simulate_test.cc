#include <gtest/gtest.h>

#include "graph/schedule.h"
#include "graph/text.h"
#include "tests/graph/support.h"

namespace refrain::graph {
namespace {

using Bytes = std::vector<int64_t>;

Simulation plain(std::string_view text) {
  const Graph graph = parse(text).graph;
  return simulate(graph, empty_schedule(graph));
}

Simulation run(std::string_view text, std::string_view schedule) {
  const ParsedGraph parsed = parse(text);
  return simulate(parsed.graph, parse_schedule(schedule, parsed));
}

Simulation good(std::string_view text, std::string_view schedule) {
  Simulation result = run(text, schedule);
  EXPECT_EQ(result.error, "");
  return result;
}

std::string error(std::string_view text, std::string_view schedule) { return run(text, schedule).error; }

TEST(SimulatePlain, AnEmptyStep) {
  const auto result = plain("end outside=3 gap=5");
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(result.in_use, Bytes{3});
  EXPECT_EQ(result.peaks, Bytes{5});
  EXPECT_EQ(result.peak, 5);
}

TEST(SimulatePlain, AChainFreesAsItGoes) {
  const auto result = plain(R"(
    source x bytes=100
    a = f(x) bytes=10
    b = g(a) bytes=20
    c = h(b) bytes=40 death=end
    k())");
  EXPECT_EQ(result.in_use, (Bytes{100, 110, 120, 140, 140}));
  EXPECT_EQ(result.peaks, (Bytes{110, 130, 160, 160, 140}));  // b is still there right after h
  EXPECT_EQ(result.peak, 160);
  EXPECT_EQ(result.peak_place, 2);
  EXPECT_FALSE(result.peak_in_recompute);
  EXPECT_EQ(result.added_ns, 0);
}

TEST(SimulatePlain, InPlaceMakesNoBytes) {
  const auto result = plain("source x bytes=100\na = f(x) bytes=10\nb = g_(a!)\nc = h_(b!) death=end");
  EXPECT_EQ(result.in_use, (Bytes{100, 110, 110, 110}));
  EXPECT_EQ(result.peaks, (Bytes{110, 110, 110, 110}));
}

TEST(SimulatePlain, DeadOutputsAreThereUntilTheNextOperator) {
  const auto result = plain("a, b = f() bytes=10,20\nc = g(a) bytes=1\nh()");
  EXPECT_EQ(result.in_use, (Bytes{0, 10, 0, 0}));
  EXPECT_EQ(result.peaks, (Bytes{30, 30, 11, 0}));
}

TEST(SimulatePlain, SourcesComeAndDie) {
  const auto result = plain("source x bytes=8 death=1\nf(x)\nsource y bytes=16 birth=1 death=2\ng(y)\nh()");
  EXPECT_EQ(result.in_use, (Bytes{8, 16, 0, 0}));
  EXPECT_EQ(result.peaks, (Bytes{8, 24, 16, 0}));  // in the gap x may be there still, and y already
}

TEST(SimulatePlain, WorkspaceIsAboveTheOutputs) {
  const auto result = plain("a = f() bytes=10 ws=5\nb = g(a) bytes=10 ws=-3");
  EXPECT_EQ(result.peaks, (Bytes{15, 17, 20}));
}

TEST(SimulatePlain, NegativeWorkspaceDoesNotLowerTheStart) {
  EXPECT_EQ(plain("source x bytes=50\na = f(x) bytes=10 ws=-30").peaks, (Bytes{50, 60}));
}

TEST(SimulatePlain, OutsideAndGapsAreAdded) {
  const auto result =
      plain("a = f() bytes=10 outside=1 gap=100\nb = g(a) bytes=10 outside=2 gap=7\nh()\nend outside=4 gap=30");
  EXPECT_EQ(result.in_use, (Bytes{1, 12, 0, 4}));
  EXPECT_EQ(result.peaks, (Bytes{100, 22, 20, 30}));  // before h, a and b may be there still
}

TEST(SimulatePlain, WhatOutlivesTheStepIsThereAtTheEnd) {
  EXPECT_EQ(plain("a, b = f() bytes=10,20 death=end,-\ng()").in_use, (Bytes{0, 10, 10}));
}

TEST(SimulatePlain, WhatTheLastOperatorOverwritesDoesNotOutliveTheStep) {
  EXPECT_EQ(plain("source x bytes=8\ny = f_(x!) death=end").in_use, (Bytes{8, 8}));
}

TEST(SimulatePlain, ASourceMayTakeOverAStorage) {  // written by an operator that cannot run again
  const auto result = plain("source w bytes=8\nsgd_(w) once\nsource v bytes=8 over=w\nf(v)");
  EXPECT_EQ(result.in_use, (Bytes{8, 8, 8}));
  EXPECT_EQ(result.peaks, (Bytes{8, 8, 8}));
}

constexpr auto kChain = R"(
  source x bytes=100
  a = f(x) bytes=10 ns=3
  b = g(a) bytes=20 ns=5 ws=7
  c = h(b) bytes=40
  d = k(c, a) bytes=1 death=end
  l())";

TEST(Simulate, DropAndRecompute) {
  const auto result = good(kChain, "2: drop a\n3: recompute a");
  EXPECT_EQ(result.in_use, (Bytes{100, 110, 120, 150, 101, 101}));
  EXPECT_EQ(result.peaks, (Bytes{110, 137, 160, 160, 151, 101}));
  EXPECT_EQ(result.added_ns, 3);
  EXPECT_EQ(result.recomputed_ops, 1);
}

TEST(Simulate, TemporariesStayUntilDropped) {
  // b is dead at 3; recomputed there it is a temporary
  EXPECT_EQ(good(kChain, "3: recompute b").in_use, (Bytes{100, 110, 130, 170, 121, 121}));
  EXPECT_EQ(good(kChain, "3: recompute b, drop b").in_use, (Bytes{100, 110, 130, 150, 101, 101}));
  EXPECT_EQ(good(kChain, "3: recompute b\nend: drop b").in_use, (Bytes{100, 110, 130, 170, 121, 101}));
}

TEST(Simulate, ThePeakMayBeInARecomputation) {
  const auto result = good(kChain, "3: recompute b, drop b");  // 150 + 20 + 7
  EXPECT_EQ(result.peak, 177);
  EXPECT_EQ(result.peak_place, 3);
  EXPECT_TRUE(result.peak_in_recompute);
}

TEST(Simulate, ThereAlreadyIsMadeAgainAndFreed) {
  const auto result = good(kChain, "2: recompute a");
  EXPECT_EQ(result.in_use[2], 130);
  EXPECT_EQ(result.peaks[2], 170);
  const auto twice = good(kChain, "2: recompute a, recompute b");
  EXPECT_EQ(twice.in_use[2], 130);
  EXPECT_EQ(twice.added_ns, 8);
}

TEST(Simulate, OfSeveralOutputsOnlyTheMissingStay) {
  constexpr auto kSplit = "source x bytes=1\na, b, c = f(x) bytes=10,20,40 death=end,end,1\ng(a)\nh(b)";
  const auto result = good(kSplit, "1: drop b\n2: recompute b, drop c");
  EXPECT_EQ(result.in_use, (Bytes{1, 11, 31, 31}));
  EXPECT_EQ(result.peaks[2], 11 + 70);
}

TEST(Simulate, ADeadOutputBecomesATemporary) {
  constexpr auto kSplit = "source x bytes=1\na, b = f(x) bytes=10,20\ng(a)\nh(a)\nk()";
  const auto result = good(kSplit, "2: recompute b");
  EXPECT_EQ(result.in_use, (Bytes{1, 11, 31, 21, 21}));
}

constexpr auto kInPlace = R"(
  source x bytes=100
  a = f(x) bytes=10 ns=1
  b = g_(a!) ns=2
  c = h_(b!) ns=4
  d = k(x) bytes=5
  l(c, d)
  m())";

TEST(Simulate, RecomputingInPlaceCopiesFirst) {
  const auto result = good(kInPlace, "3: drop c\n4: recompute a, recompute b, drop a, recompute c, drop b");
  EXPECT_EQ(result.in_use, (Bytes{100, 110, 110, 100, 115, 100, 100}));
  EXPECT_EQ(result.peaks[4], 125);
  EXPECT_EQ(result.added_ns, 7);
}

TEST(Simulate, OrConsumesTheTemporary) {
  const auto result = good(kInPlace, "3: drop c\n4: recompute a, recompute_in_place b, recompute_in_place c");
  EXPECT_EQ(result.in_use, (Bytes{100, 110, 110, 100, 115, 100, 100}));
  EXPECT_EQ(result.peaks[4], 115);
}

TEST(Simulate, ConsumingForWhatIsThereAlreadyFreesTheTemporary) {
  const auto result = good(kInPlace, "3: recompute a, recompute b, drop a, recompute_in_place c");
  EXPECT_EQ(result.in_use[3], 110);
  EXPECT_EQ(result.peaks[3], 130);
}

TEST(Simulate, AnOverwriterThatReadsNothingNeedsNothing) {
  constexpr auto kZero = "source x bytes=8\na = f(x) bytes=10\nb = zero_(!a)\ng()\nh(b)\nk()";
  EXPECT_EQ(good(kZero, "2: drop b\n3: recompute b").in_use, (Bytes{8, 18, 8, 18, 8, 8}));
  EXPECT_TRUE(contains(error(kZero, "2: drop b\n3: recompute_in_place b"),
                       "before operator 3 'h': recomputes operator 1 'zero_' in place of value 1, which is not "
                       "resident"));
}

TEST(Simulate, ActionsAtTheEnd) {
  constexpr auto kKept = "source x bytes=8\na = f(x) bytes=10 ns=3 death=end\ng(a)";
  const auto result = good(kKept, "1: \nend: recompute a");
  EXPECT_EQ(result.in_use, (Bytes{8, 18, 18}));
  EXPECT_EQ(result.peaks[2], 28);
  EXPECT_EQ(error(kKept, "end: drop a"), "at the end: value 1 outlives the step and has been dropped; recompute it");
  EXPECT_EQ(error(kKept, "end: drop a, recompute a"), "");
  EXPECT_EQ(error(kKept, "end: drop x"), "at the end: drops value 0, which is alive and not evictable");
}

TEST(Simulate, OutsideOfThePlaceCountsInItsActions) {
  const auto result =
      good("source x bytes=1\na = f(x) bytes=10 ws=2 death=end\ng() outside=50 gap=50\nh(a) outside=7 gap=7",
           "1: drop a\n2: recompute a");
  EXPECT_EQ(result.peaks, (Bytes{13, 61, 20, 11}));
}

TEST(SimulateErrors, WhatAnOperatorOfTheStepLacks) {
  EXPECT_EQ(error(kChain, "2: drop a"),
            "before operator 3 'k': it reads value 1, which has been dropped; recompute it");
  EXPECT_EQ(error(kInPlace, "1: drop a"),
            "before operator 1 'g_': it reads value 1, which has been dropped; recompute it");
  EXPECT_TRUE(contains(error("a = f()\nb = zero_(!a)", "1: drop a"),
                       "value 1 took over the storage of value 0, which has been dropped"));
}

TEST(SimulateErrors, Drops) {
  EXPECT_EQ(error(kChain, "1: drop b"), "before operator 1 'g': drops value 2, which is not resident");
  EXPECT_EQ(error(kChain, "3: drop b"), "before operator 3 'k': drops value 2, which is not resident");
  EXPECT_EQ(error(kChain, "2: drop a, drop a"), "before operator 2 'h': drops value 1, which is not resident");
  EXPECT_EQ(error(kChain, "1: drop x"), "before operator 1 'g': drops value 0, which is alive and not evictable");
  EXPECT_EQ(error(kChain, "1: drop 5"), "before operator 1 'g': drops value 5; expected 0 to 4");
  EXPECT_EQ(error(kChain, "1: drop -1"), "before operator 1 'g': drops value -1; expected 0 to 4");
  EXPECT_EQ(error("a = f() keep=a\ng(a)", "1: drop a"),
            "before operator 1 'g': drops value 0, which is alive and not evictable");
  EXPECT_EQ(error("a = f() keep=a\ng(a)\nh()", "2: recompute a, drop a"), "");  // dead, so a temporary
}

TEST(SimulateErrors, Recomputations) {
  EXPECT_EQ(error(kChain, "1: recompute b"),
            "before operator 1 'g': recomputes operator 1; expected one that has run, 0 to 0");
  EXPECT_EQ(error(kChain, "1: recompute -1"),
            "before operator 1 'g': recomputes operator -1; expected one that has run, 0 to 0");
  EXPECT_EQ(error(kChain, "2: drop a, recompute b"),
            "before operator 2 'h': recomputes operator 1 'g', which reads value 1, which is not resident");
  EXPECT_EQ(error("a = f() once\ng(a)", "1: recompute a"),
            "before operator 1 'g': recomputes operator 0 'f', which cannot be recomputed");
  EXPECT_EQ(error(kChain, "1: recompute_in_place a"),
            "before operator 1 'g': recomputes operator 0 'f' in place, but it overwrites nothing");
  EXPECT_EQ(error("source x death=1\na = f(x)\ng(a)", "1: recompute a"),
            "before operator 1 'g': recomputes operator 0 'f', which reads value 0, which is not resident");
  EXPECT_TRUE(contains(error("source x\ny = f_(x!)\ng(y)", "1: recompute y"), "reads value 0, which is not resident"));
}

TEST(SimulateErrors, TheScheduleItself) {
  const Graph graph = parse(kChain).graph;
  EXPECT_EQ(simulate(graph, {}).error, "found a schedule of 0 places; expected 6, one for each operator and the end");
  Schedule schedule = empty_schedule(graph);
  schedule.places[1].push_back({static_cast<Action::Kind>(9), 0});
  EXPECT_TRUE(contains(simulate(graph, schedule).error, "found an action of an unknown kind"));
}

TEST(Simulate, AddedTimeDoesNotOverflow) {
  const ParsedGraph parsed = parse("a = f() ns=9007199254740992\ng(a)");
  Schedule schedule = empty_schedule(parsed.graph);
  schedule.places[1].assign(2000, {Action::Kind::kRecompute, 0});
  EXPECT_EQ(simulate(parsed.graph, schedule).added_ns, std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace refrain::graph
