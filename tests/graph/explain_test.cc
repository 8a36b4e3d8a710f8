#include "graph/explain.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "graph/families.h"
#include "graph/random_graph.h"
#include "graph/text.h"
#include "tests/graph/support.h"

namespace refrain::graph {
namespace {

constexpr auto kText = R"(
  source x bytes=2048
  a = aten::sin(x) bytes=1024 ns=2000000 scope=blocks.0
  b = aten::cos(a) bytes=1024 ns=1000000 scope=blocks.0
  c = aten::exp(b) bytes=3072 ns=5000000 ws=512 scope=blocks.1
  d = aten::cos_backward(c, a) bytes=2048 ns=1000000 scope=blocks.0 backward
  e = aten::sin_backward(d, x, b) bytes=1024 ns=1000000 scope=blocks.0 backward
  done(e) outside=7)";

TEST(Explain, SaysWhatRunsAgainWhenAndWhy) {
  const ParsedGraph parsed = parse(kText);
  const Explanation e = explain(
      parsed.graph, parse_schedule("2: drop a\n3: drop b, recompute a\n4: recompute a, recompute b, drop a", parsed));
  EXPECT_EQ(e.error, "");
  EXPECT_EQ(e.plain_peak, 2048 + 1024 + 1024 + 3072 + 2048);
  EXPECT_EQ(e.plain_peak_place, 3);
  EXPECT_EQ(e.step_ns, 10000001);
  EXPECT_EQ(e.added_ns, 5000000);
  EXPECT_EQ(e.recomputed_ops, 3);
  EXPECT_EQ(e.dropped_values, 3);
  ASSERT_EQ(e.scopes.size(), 1u);
  EXPECT_EQ(e.scopes[0].scope, "blocks.0");
  EXPECT_EQ(e.scopes[0].what, (std::vector<std::string>{"2 aten::sin", "1 aten::cos"}));
  EXPECT_EQ(e.scopes[0].runs, 3);
  EXPECT_EQ(e.scopes[0].ns, 5000000);
  EXPECT_EQ(e.scopes[0].first_place, 3);
  EXPECT_EQ(e.scopes[0].last_place, 4);
  EXPECT_EQ(e.scopes[0].dropped, 3);
  EXPECT_EQ(e.scopes[0].freed_at_peak, 1024);  // b; a is back
}

TEST(Explain, SaysWhoHoldsThePeak) {
  const ParsedGraph parsed = parse(kText);
  const Explanation e =
      explain(parsed.graph, parse_schedule("3: drop b\n4: recompute a, recompute b, drop a", parsed), 2);
  EXPECT_EQ(e.peak.bytes, 2048 + 1024 + 3072 + 2048);
  EXPECT_EQ(e.peak_op, "aten::cos_backward");
  EXPECT_EQ(e.peak_scope, "blocks.0");
  ASSERT_EQ(e.holders.size(), 2u);
  EXPECT_EQ(e.holders[0].value, parsed["c"]);
  EXPECT_EQ(e.holders[0].bytes, 3072);
  EXPECT_EQ(e.holders[0].op, "aten::exp");
  EXPECT_EQ(e.holders[0].made, 2);
  EXPECT_EQ(e.holders[0].next_read, 3);
  EXPECT_EQ(e.holders[1].value, parsed["x"]);
  EXPECT_EQ(e.holders[1].op, "aten::sin_backward");  // reads it next
  EXPECT_EQ(e.holders[1].made, kNone);
  EXPECT_EQ(e.other_holders, 1);
  EXPECT_EQ(e.other_bytes, 1024);
}

TEST(Explain, MarksTemporaries) {
  const ParsedGraph parsed = parse("source x bytes=1\na = f(x) bytes=10\ng(a)\nh(x)\nk(x)");
  const Explanation e = explain(parsed.graph, parse_schedule("3: recompute a", parsed));
  EXPECT_EQ(e.peak.bytes, 11);
  EXPECT_EQ(e.peak.place, 0);
  const auto late = parse("source x bytes=1\na = f(x) bytes=10\ng(a)\nh(x) ws=4\nk(x)");
  const Explanation of_late = explain(late.graph, parse_schedule("2: recompute a", late));
  ASSERT_EQ(of_late.holders.size(), 2u);
  EXPECT_TRUE(of_late.holders[0].is_temporary);
  EXPECT_FALSE(of_late.holders[1].is_temporary);
}

TEST(Explain, AsText) {
  const ParsedGraph parsed = parse(kText);
  const std::string text =
      to_text(explain(parsed.graph, parse_schedule("3: drop b\n4: recompute a, recompute b, drop a", parsed), 2));
  EXPECT_EQ(text, R"(peak 8.0 KiB while operator 3 'aten::cos_backward' of blocks.0 runs; baseline 9.0 KiB
adds 3.000 ms to 10.000 ms (30.0 %): 2 operators recomputed, 2 values dropped
held at the peak
    bytes  made by                 module    at  read next at
  3.0 KiB  aten::exp               blocks.1   2             3
  2.0 KiB  (source)                blocks.0   -             4
  1.0 KiB  (1 others)
  2.0 KiB  (outputs of what runs)
dropped and recomputed, by module; freed: bytes at operator 3, where the baseline has its peak
  module      freed  dropped  recomputed      time  before  what
  blocks.0  1.0 KiB        2           2  3.000 ms  4       1 aten::cos, 1 aten::sin
)");
  EXPECT_TRUE(contains(to_text(explain(parsed.graph, parse_schedule("2: drop x", parsed))),
                       "this schedule cannot run: before operator 2"));
  EXPECT_TRUE(contains(to_text(explain(parsed.graph, empty_schedule(parsed.graph))), "nothing is dropped"));
  EXPECT_TRUE(contains(to_text(explain({}, empty_schedule({}))), "peak 0 B at the end; baseline 0 B"));
}

TEST(Explain, ListsSoManyScopes) {
  std::string step = "source x\n", schedule;
  for (int i = 0; i < 5; ++i) step += fmt::format("v{} = f(x) bytes={} scope=s{} death=end\n", i, i == 3 ? 20 : 10, i);
  for (int i = 0; i < 5; ++i) schedule += fmt::format("{}: drop v{}\n", i + 1, i);
  const ParsedGraph parsed = parse(step + "g(v0, v1, v2, v3, v4)");
  const Explanation e =
      explain(parsed.graph, parse_schedule(schedule + "5: recompute v0, recompute v1, recompute v2, recompute v3, "
                                                      "recompute v4\n",
                                           parsed));
  EXPECT_EQ(e.error, "");
  const std::string text = to_text(e, 2);
  EXPECT_TRUE(contains(text, "s0 ")) << text;
  EXPECT_TRUE(contains(text, "(3 others)"));
  EXPECT_FALSE(contains(text, "\n  s4 "));
}

TEST(Explain, TimesDoNotOverflow) {
  const ParsedGraph parsed = parse("a = f() ns=9007199254740992\nb = f() ns=9007199254740992 scope=b\ng(a, b)");
  Schedule schedule = empty_schedule(parsed.graph);
  for (int i = 0; i < 1200; ++i) {
    schedule.places[2].push_back({Action::Kind::kRecompute, 0});
    schedule.places[2].push_back({Action::Kind::kRecompute, 1});
  }
  EXPECT_EQ(explain(parsed.graph, schedule).scopes[0].ns, std::numeric_limits<int64_t>::max());
  EXPECT_TRUE(contains(to_text(explain(parsed.graph, schedule), 0), "(2 others)"));
}

TEST(Explain, SumsOverScopes) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    Graph graph = random_graph(seed);
    for (size_t i = 0; i < graph.ops.size(); ++i)
      graph.ops[i].scope = i % 3 == 0 ? "" : "blocks." + std::to_string(i % 3);
    const Schedule schedule = random_schedule(graph, seed);
    const Explanation e = explain(graph, schedule, seed % 5);
    ASSERT_EQ(e.error, "");
    int64_t runs = 0, ns = 0, dropped = 0;
    for (const auto& scope : e.scopes) {
      runs += scope.runs;
      ns += scope.ns;
      dropped += scope.dropped;
    }
    EXPECT_EQ(runs, e.recomputed_ops);
    EXPECT_EQ(ns, e.added_ns);
    EXPECT_EQ(dropped, e.dropped_values);
    int64_t held = e.other_bytes;
    for (const auto& holder : e.holders) held += holder.bytes;
    EXPECT_EQ(held + e.peak.made + e.peak.workspace + e.peak.outside, e.peak.bytes);
    EXPECT_FALSE(to_text(e).empty());
  }
}

}  // namespace
}  // namespace refrain::graph
