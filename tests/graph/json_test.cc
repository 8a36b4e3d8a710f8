#include "graph/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "graph/families.h"
#include "graph/random_graph.h"
#include "graph/text.h"
#include "tests/graph/support.h"

namespace refrain::graph {
namespace {

using Json = nlohmann::json;

const auto kText = R"(model "two layers"
source x bytes=64
a = aten::relu(x) ns=5 bytes=32 ws=-16 scope=block.0
b = aten::mul_(a!, x) once random outside=3 gap=4
done(b) backward
end outside=1 gap=2
)";

const auto kJson = R"({"kind":"graph","version":1,"model":"two layers","end_outside":1,"end_gap":2,
"ops":[
{"name":"aten::relu","ns":5,"scope":"block.0","inputs":[0],"outputs":[1],"workspace":-16},
{"name":"aten::mul_","ns":1,"inputs":[1,0],"outputs":[2],"outside":3,"gap":4,"once":true,"random":true},
{"name":"done","ns":1,"inputs":[2],"backward":true}],
"values":[
{"bytes":64,"death":3},
{"bytes":32,"death":2,"evictable":true},
{"bytes":32,"death":3,"overwrites":1,"evictable":true}]}
)";

TEST(GraphJson, IsAsDocumented) {
  const Graph graph = parse(kText).graph;
  EXPECT_EQ(to_json(graph), kJson);
  EXPECT_EQ(to_text(std::get<Graph>(read_graph(kJson))), to_text(graph));
}

TEST(GraphJson, RoundTripOfRandomGraphs) {
  for (uint64_t seed = 0; seed < 2000 && !HasFailure(); ++seed) {
    const Graph graph = random_graph(seed);
    const std::string json = to_json(graph);
    const auto read = read_graph(json);
    ASSERT_TRUE(std::holds_alternative<Graph>(read)) << std::get<FormatError>(read).what();
    EXPECT_EQ(to_json(std::get<Graph>(read)), json);
    EXPECT_EQ(to_text(std::get<Graph>(read)), to_text(graph));
    const Schedule schedule = random_schedule(graph, seed, 0.2);
    const auto read_back = read_schedule(to_json(graph, schedule), graph);
    ASSERT_TRUE(std::holds_alternative<Schedule>(read_back)) << std::get<FormatError>(read_back).what();
    EXPECT_EQ(std::get<Schedule>(read_back), schedule);
  }
}

TEST(GraphJson, NamesMayHoldAnyBytes) {
  Graph graph;
  graph.model = std::string("a\"\\\n\x01 \xc3\xa4 \xff", 10);
  EXPECT_EQ(std::get<Graph>(read_graph(to_json(graph))).model, "a\"\\\n\x01 \xc3\xa4 ?");
}

TEST(GraphJson, IsReadFromWithinAnotherDocument) {
  const Json plan{{"trace", Json::parse(kJson)}};
  EXPECT_EQ(to_json(std::get<Graph>(graph_of(plan["trace"]))), kJson);
}

TEST(GraphJson, UnknownMembersArePassedOver) {
  Json json = Json::parse(kJson);
  json["ops"][0]["flops"] = {1, 2};
  json["machine"] = "any";
  EXPECT_EQ(to_json(std::get<Graph>(read_graph(json.dump()))), kJson);
}

std::string refusal(const std::string& text) {
  const auto read = read_graph(text);
  return std::holds_alternative<FormatError>(read) ? std::get<FormatError>(read).what() : "";
}

std::string refusal_after(const std::string& pointer, const Json& value) {
  Json json = Json::parse(kJson);
  json[Json::json_pointer(pointer)] = value;
  return refusal(json.dump());
}

TEST(GraphJsonErrors, SayWhereWhatWasFoundAndWhatWasExpected) {
  const std::string prefix = "[refrain::graph] ";
  EXPECT_EQ(refusal(""), prefix + "the document: found no bytes; expected a JSON document");
  EXPECT_EQ(refusal("{\"kind\":"), prefix + "byte 9: found text that is not valid JSON; expected a JSON document");
  EXPECT_EQ(refusal("[]"), prefix + "the document: found a list; expected an object");
  const std::string expected = "; expected kind \"graph\" version 1";
  EXPECT_EQ(refusal("{}"), prefix + "the document: found no `kind`" + expected);
  EXPECT_EQ(refusal("{\"kind\":\"graph\"}"),
            prefix + "the document: found kind \"graph\" without a version" + expected);
  EXPECT_EQ(refusal_after("/kind", "plan"), prefix + "the document: found kind \"plan\" version 1" + expected);
  EXPECT_EQ(refusal_after("/version", 2), prefix + "the document: found kind \"graph\" version 2" + expected);
  EXPECT_EQ(refusal_after("/version", 1.0), prefix + "the document: found kind \"graph\" version 1.0" + expected);
  EXPECT_EQ(refusal_after("/ops", 7), prefix + "`ops`: found 7; expected a list");
  EXPECT_EQ(refusal_after("/ops/1", "x"), prefix + "`ops[1]`: found \"x\"; expected an object");
  EXPECT_EQ(refusal_after("/ops/1/name", 5), prefix + "`ops[1].name`: found 5; expected a string");
  EXPECT_EQ(refusal_after("/ops/1/once", 1), prefix + "`ops[1].once`: found 1; expected true or false");
  EXPECT_EQ(refusal_after("/ops/1/inputs/1", 1.5),
            prefix + "`ops[1].inputs[1]`: found 1.5; expected an integer from -2^63 to 2^63 - 1");
  EXPECT_EQ(refusal_after("/ops/1/ns", 9223372036854775808u),
            prefix + "`ops[1].ns`: found 9223372036854775808; expected an integer from -2^63 to 2^63 - 1");
  EXPECT_EQ(refusal_after("/values/0/death", 2147483648),
            prefix + "`values[0].death`: found 2147483648; expected an integer from -2147483648 to 2147483647");
  EXPECT_TRUE(contains(refusal_after("/ops/1/inputs/1", 9),
                       "found a graph with a defect, operator 1 'aten::mul_': found input 9"));
  EXPECT_TRUE(contains(refusal_after("/ops/1/outputs/0", 99), "found a graph with a defect"));
  EXPECT_TRUE(contains(refusal_after("/values/0/bytes", -1), "found a graph with a defect, value 0: found bytes -1"));
  EXPECT_TRUE(contains(refusal_after("/ops/0/name", std::string(1000, 'x')), ""));
}

TEST(GraphJsonErrors, DepthAndHugeNumbers) {
  EXPECT_TRUE(
      contains(refusal(std::string(100'000, '[')), "byte 64: found lists and objects 65 deep; expected at most 64"));
  EXPECT_TRUE(contains(refusal("{\"kind\":1e999}"), "expected a JSON document"));
  EXPECT_TRUE(contains(refusal("{\"kind\":\"\\ud800\"}"), "found text that is not valid JSON"));
}

TEST(ScheduleJson, IsAsDocumented) {
  const ParsedGraph parsed = parse("source x\na = f(x)\nb = g(a)\nh(a)");
  const Schedule schedule = parse_schedule("1: \n2: drop a\n3: recompute a, drop b\nend: recompute_in_place b", parsed);
  const std::string json = "{\"kind\":\"schedule\",\"version\":1,\"graph\":\"" + fingerprint(parsed.graph) +
                           "\",\n\"places\":[\n[2,\"drop\",1],\n[3,\"recompute\",0,\"recompute_in_place\",1]]}\n";
  const Schedule at_end = parse_schedule("2: drop a\nend: recompute a, recompute_in_place b", parsed);
  EXPECT_EQ(to_json(parsed.graph, at_end), json);
  EXPECT_EQ(std::get<Schedule>(read_schedule(json, parsed.graph)), at_end);
  EXPECT_EQ(std::get<Schedule>(read_schedule(to_json(parsed.graph, schedule), parsed.graph)), schedule);
}

TEST(ScheduleJsonErrors, SayWhereWhatWasFoundAndWhatWasExpected) {
  const Graph graph = parse("source x\na = f(x)\nb = g(a)\nh(a)").graph;
  const Graph other = parse("source x\na = f(x) bytes=2\nb = g(a)\nh(a)").graph;
  const auto refusal = [&](const Json& places) -> std::string {
    const auto read = schedule_of(
        Json{{"kind", "schedule"}, {"version", 1}, {"graph", fingerprint(graph)}, {"places", places}}, graph);
    return std::holds_alternative<FormatError>(read) ? std::get<FormatError>(read).what() : "";
  };
  EXPECT_EQ(refusal(Json::array()), "");
  EXPECT_TRUE(contains(refusal({{4, "drop", 1}}), "`places[0][0]`: found 4; expected a place, 0 to 3"));
  EXPECT_TRUE(contains(refusal({{-1, "drop", 1}}), "`places[0][0]`: found -1; expected a place, 0 to 3"));
  EXPECT_TRUE(contains(refusal({{1, "keep", 1}}),
                       "`places[0][1]`: found \"keep\"; expected drop, recompute or recompute_in_place"));
  EXPECT_TRUE(contains(refusal({{1, "drop"}}), "`places[0]`: found a list; expected a list of a place and pairs"));
  EXPECT_TRUE(contains(refusal(Json::array({Json::array()})),
                       "`places[0]`: found a list; expected a list of a place and pairs"));
  EXPECT_TRUE(contains(refusal({{1, "drop", "a"}}), "`places[0][2]`: found \"a\"; expected an integer"));
  EXPECT_TRUE(contains(refusal(5), "`places`: found 5; expected a list"));
  const auto read = read_schedule(to_json(other, empty_schedule(other)), graph);
  EXPECT_TRUE(contains(std::get<FormatError>(read).what(), "`graph`: found \"" + fingerprint(other) +
                                                               "\"; expected \"" + fingerprint(graph) +
                                                               "\", the step that it is for"));
}

TEST(Fingerprint, IsOfTheStepAndNotOfItsTimes) {
  const std::string before = fingerprint(parse(kText).graph);
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = kText;
    text.replace(text.find(from), from.size(), to);
    return fingerprint(parse(text).graph) != before;
  };
  EXPECT_FALSE(changed("ns=5", "ns=6"));
  EXPECT_FALSE(changed("ws=-16", "ws=4"));
  EXPECT_FALSE(changed("two layers", "three"));
  EXPECT_FALSE(changed("block.0", "block.1"));
  EXPECT_TRUE(changed("aten::relu", "aten::gelu"));
  EXPECT_TRUE(changed("bytes=32", "bytes=33"));
  EXPECT_TRUE(changed("(a!, x)", "(a!)"));
  EXPECT_TRUE(changed("once", ""));
  EXPECT_TRUE(changed("done(b)", "done(x)"));
  EXPECT_TRUE(changed("source x bytes=64", "source x bytes=64 birth=0 death=2"));
}

}  // namespace
}  // namespace refrain::graph
