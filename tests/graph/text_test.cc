#include "graph/text.h"

#include <gtest/gtest.h>

#include "graph/random_graph.h"
#include "refrain/error.h"

namespace refrain::graph {
namespace {

using Ids = std::vector<ValueId>;

/// Printing again what was parsed. Graphs have no `operator==`: their text says all there is.
std::string again(std::string_view text) { return to_text(parse(text).graph); }

std::string refusal(std::string_view text) {
  try {
    parse(text);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST(Text, ReadsAnOperator) {
  const auto parsed = parse(
      "source a bytes=64\nb = aten::relu(a) ns=5 bytes=32 ws=16 scope=block.0 outside=3 random backward\nc(b) once");
  ASSERT_EQ(parsed.graph.ops.size(), 2u);
  const Op& op = parsed.graph.ops[0];
  EXPECT_EQ(op.name, "aten::relu");
  EXPECT_EQ(op.scope, "block.0");
  EXPECT_EQ(op.ns, 5);
  EXPECT_EQ(op.workspace, 16);
  EXPECT_EQ(op.outside, 3);
  EXPECT_EQ(op.gap, 3);
  EXPECT_TRUE(op.random && op.backward && op.replayable);
  EXPECT_EQ(op.inputs, (Ids{parsed["a"]}));
  EXPECT_EQ(op.outputs, (Ids{parsed["b"]}));
  const Value& b = parsed.graph.values[1];
  EXPECT_EQ(b.bytes, 32);
  EXPECT_EQ(b.producer, 0);
  EXPECT_EQ(b.death, 2);
  EXPECT_TRUE(b.evictable);
  EXPECT_FALSE(parsed.graph.ops[1].replayable);
}

TEST(Text, LifetimesByDefault) {
  const auto parsed = parse("source x\na = f(x)\nb, c = g(a)\nd = h_(b!)\nk(d, a)\nsource y\nl(y)");
  const auto death = [&](const char* name) { return parsed.graph.values[static_cast<size_t>(parsed[name])].death; };
  EXPECT_EQ(death("x"), 5);
  EXPECT_EQ(death("a"), 4);
  EXPECT_EQ(death("b"), 3);  // overwritten
  EXPECT_EQ(death("c"), 2);  // never read
  EXPECT_EQ(death("d"), 4);
  EXPECT_EQ(parsed.graph.values[static_cast<size_t>(parsed["y"])].birth, 4);
}

TEST(Text, InPlace) {
  const auto parsed =
      parse("source w bytes=3\nsource x bytes=5\na, b = f(w!, !x)\nc = g(a!>c, b)\nd, e = h(b!>e) bytes=7");
  const auto& values = parsed.graph.values;
  EXPECT_EQ(parsed.graph.ops[0].inputs, (Ids{parsed["w"]}));
  EXPECT_EQ(values[2].overwrites, parsed["w"]);
  EXPECT_EQ(values[2].bytes, 3);
  EXPECT_EQ(values[3].overwrites, parsed["x"]);
  EXPECT_EQ(values[3].bytes, 5);
  EXPECT_EQ(values[4].overwrites, parsed["a"]);
  EXPECT_EQ(values[5].overwrites, kNone);
  EXPECT_EQ(values[5].bytes, 7);
  EXPECT_EQ(values[6].overwrites, parsed["b"]);
}

TEST(Text, PrintsWhatItReads) {
  const std::string text = R"(model "two \"layers\"\x0a"
source v0 bytes=64
v1 = aten::relu(v0) ns=5 bytes=64 ws=-16
v2 = aten::mul_(v1!, v0) scope=block.0
source v3 birth=0 death=2
v4, v5 = "f g"(v2) bytes=32,33 death=-,end keep=v5
v6, v7 = zero_(!v4>v7) once random
done(v7) outside=8 gap=9 backward
end outside=8 gap=7
)";
  EXPECT_EQ(again(text), text);
}

TEST(Text, RoundTripOfRandomGraphs) {
  for (uint64_t seed = 0; seed < 3000 && !HasFailure(); ++seed) {
    const Graph graph = random_graph(seed);
    const std::string text = to_text(graph);
    const auto parsed = parse(text);
    EXPECT_EQ(to_text(parsed.graph), text);
    for (const Schedule& schedule : {random_schedule(graph, seed), random_schedule(graph, seed, 0.3)})
      EXPECT_EQ(parse_schedule(to_text(graph, schedule), parsed), schedule) << text << to_text(graph, schedule);
    // the text says all: what it says is simulated alike
    const Schedule schedule = random_schedule(graph, seed);
    EXPECT_EQ(simulate(graph, schedule).peaks, simulate(parsed.graph, schedule).peaks) << text;
  }
}

TEST(Text, ReadsTheExampleInItsHeader) {
  const auto parsed = parse(R"(
    model "two layers"
    source x bytes=64                      # birth=0, death=end
    a = aten::relu(x) ns=5 bytes=64 ws=16
    b = aten::mul_(a!, x) scope=block.0    # overwrites a, which it reads
    c, d = split(b) bytes=32,32 death=-,end keep=d
    e = zero_(!c) random once
    done(e) backward outside=8 gap=9
    end outside=8 gap=8)");
  EXPECT_EQ(parsed.graph.model, "two layers");
  EXPECT_EQ(parsed.graph.ops.size(), 5u);
  EXPECT_EQ(parsed.graph.values.size(), 6u);
}

TEST(Text, CommentsAndEmptyLines) { EXPECT_EQ(again("\n# one\n  f() # two\n\n\t# three"), "f()\n"); }

TEST(TextErrors, SayWhereAndWhat) {
  EXPECT_EQ(refusal("f()\n  a = (b)"), "line 2, column 7: found '('; expected the name of an operator");
  EXPECT_EQ(refusal("a = f(b)"), "line 1, column 7: found 'b'; expected the name of a source or output");
  EXPECT_EQ(refusal("a = f(\n"), "line 1, column 7: found the end of the line; expected an argument");
  EXPECT_EQ(refusal("a = f"), "line 1, column 6: found the end of the text; expected '('");
  EXPECT_EQ(refusal("a = f() bytes=x"), "line 1, column 15: found 'x'; expected a number, 0 to 9007199254740992");
  EXPECT_EQ(refusal("a = f() bytes=-1"), "line 1, column 15: found -1; expected a number, 0 to 9007199254740992");
  EXPECT_EQ(refusal("a = f() ns=99999999999999999999"),
            "line 1, column 12: found 99999999999999999999; expected a number, 0 to 9007199254740992");
  EXPECT_EQ(refusal("a = f()\na = g()"), "line 2, column 1: found 'a' again; expected a new name");
  EXPECT_EQ(refusal("a = f() size=3"),
            "line 1, column 9: found 'size'; expected ns, bytes, ws, outside, gap, scope, death, keep, once, "
            "random or backward");
  EXPECT_EQ(refusal("source a\nf(a!)"),
            "line 2, column 3: found 'a' overwritten by none of 0 outputs; expected an output for each");
  EXPECT_EQ(refusal("source a\nb = f(a!) bytes=3"),
            "line 2, column 17: found '3'; expected no bytes, as each output overwrites something");
  EXPECT_EQ(refusal("a, b f()"), "line 1, column 6: found 'f'; expected '='");
  EXPECT_EQ(refusal("=f()"), "line 1, column 1: found '='; expected an operator, 'source', 'model' or 'end'");
  EXPECT_EQ(refusal("model \"abc"), "line 1, column 11: found the end of the text; expected a closing quote");
  EXPECT_EQ(refusal("model \"\\q\""),
            "line 1, column 9: found 'q'; expected one of \\\", \\\\ and \\x with two digits");
  EXPECT_EQ(refusal("f() scope=b c()"), "line 1, column 14: found '('; expected '='");
  EXPECT_EQ(refusal("a = f() keep=b"), "line 1, column 14: found 'b'; expected an output of this operator");
  EXPECT_EQ(refusal("a = f() death=soon"), "line 1, column 15: found 'soon'; expected a place or 'end'");
  EXPECT_EQ(refusal("a = f()\ng(a)\nb = h(a) death=1"),
            "found a graph with a defect: value 1: found death 1; expected 3 "
            "(where it is first resident) to 3 (the end)");
}

TEST(TextErrors, OfSchedules) {
  const auto parsed = parse("source x\na = f(x)\ng(a)");
  const auto refusal = [&](std::string_view text) -> std::string {
    try {
      parse_schedule(text, parsed);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal("3: drop a"), "line 1, column 1: found 3; expected a number, 0 to 2");
  EXPECT_EQ(refusal("1 drop a"), "line 1, column 3: found 'drop'; expected ':'");
  EXPECT_EQ(refusal("last: drop a"), "line 1, column 1: found 'last'; expected a place or 'end'");
  EXPECT_EQ(refusal("1: keep a"), "line 1, column 4: found 'keep'; expected drop, recompute or recompute_in_place");
  EXPECT_EQ(refusal("1: drop b"), "line 1, column 9: found 'b'; expected the name of a value");
  EXPECT_EQ(refusal("1: recompute x"), "line 1, column 14: found 'x', a source; expected an output of an operator");
  EXPECT_EQ(refusal("1: drop a\nend: drop a b"), "line 2, column 13: found 'b'; expected the end of the line");
}

TEST(TextErrors, OfAnyBytes) {
  const std::string text = "source x bytes=2\na, b = f(x!, x) ns=3 bytes=5 death=-,end keep=a\nend gap=\"2\"";
  for (size_t i = 0; i < text.size(); ++i)
    for (const char c : {'\0', '"', '=', '!', ',', '\xff', '\n', '9', ' '}) {
      std::string changed = text;
      changed[i] = c;
      refusal(changed);
      refusal(text.substr(0, i));
    }
}

}  // namespace
}  // namespace refrain::graph
