#include "apps/report/report.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>

#include "refrain/error.h"

namespace refrain::report {
namespace {

using Json = nlohmann::json;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
const std::string kFolder = REPORT_TESTS;

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

Json sample(const std::string& name) { return Json::parse(read(kFolder + "/samples/sample_" + name + ".json")); }

const std::vector<std::string> kSamples{"advice",    "bench",  "breakdown", "depths",        "limits",
                                        "max_batch", "pareto", "segments",  "timeline_none", "timeline_per_block"};

Json strategy(const std::string& name, int64_t bytes, double ms) {
  return {{"name", name},      {"after_forward_bytes", bytes / 2}, {"peak_bytes", bytes}, {"step_ms_median", ms},
          {"step_ms_min", ms}, {"added_ms_median", 0.0},           {"replayed_ops", 0},   {"bit_equal", true}};
}

Json document(const std::string& kind, const Json& members) {
  Json whole{{"kind", kind}, {"version", 1}, {"model", "m"}, {"config", Json::object()}, {"machine", Json::object()}};
  whole.update(members);
  return whole;
}

/// Empty if all elements of the page are closed in order, else the first that is not.
std::string unbalanced(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    const size_t end = page.find('>', at);
    if (end == std::string::npos) return "end of page";
    const std::string tag = page.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" \n/", 1) - (tag[0] == '/'));
    if (tag[0] == '!' || tag.back() == '/' || name == "meta") continue;
    if (tag[0] != '/') {
      open.push_back(name);
      if (name == "script" || name == "style") at = page.find("</" + name, at) - 1;
    } else if (open.empty() || open.back() != name) {
      return tag;
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back();
}

/// The page of these documents is well formed and shows no number that is none.
void expect_sound(const std::vector<Json>& documents) {
  const std::string page = html(documents);
  EXPECT_EQ(unbalanced(page), "");
  const std::string body = page.substr(page.find("<main>"), page.find("</main>") - page.find("<main>"));
  for (const char* bad : {"nan", "inf\"", "-inf", ">inf"}) EXPECT_EQ(body.find(bad), std::string::npos) << bad;
}

std::string message_of(const Json& document, const std::vector<std::string>& names = {}) {
  try {
    html({document}, names);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Report, DrawsEverySampleAloneAndTogether) {
  std::vector<Json> all;
  for (const auto& name : kSamples) {
    SCOPED_TRACE(name);
    all.push_back(sample(name));
    expect_sound({all.back()});
  }
  expect_sound(all);
}

TEST(Report, WithoutDocumentsSaysSo) {
  expect_sound({});
  EXPECT_NE(html({}).find("No documents were given."), std::string::npos);
}

TEST(Report, IsTheSameEachTime) { EXPECT_EQ(html({sample("bench")}), html({sample("bench")})); }

TEST(Report, NeedsNothingFromOutside) {
  std::vector<Json> all;
  for (const auto& name : kSamples) all.push_back(sample(name));
  const std::string page = html(all);
  for (const char* outside : {"http://", "https://", " src=", "@import", "<link", "<iframe", "url(\"", "fetch("}) {
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  }
}

TEST(Report, DrawsOneToTwelveStrategies) {
  Json strategies = Json::array();
  expect_sound({document("bench", {{"strategies", strategies}})});
  for (int i = 0; i < 12; ++i) {
    strategies.push_back(strategy("strategy_with_a_long_name_" + std::to_string(i), 1000 * (i + 1), 5.0 + i % 3));
    expect_sound(
        {document("bench", {{"strategies", strategies}}),
         document(
             "depths",
             {{"rows", {{{"depth", 3}, {"strategies", strategies}}, {{"depth", 90}, {"strategies", strategies}}}}})});
  }
}

TEST(Report, DrawsEmptyLists) {
  const Json none = Json::array();
  expect_sound(
      {document("bench", {{"strategies", none}}), document("depths", {{"rows", none}}),
       document("breakdown", {{"rows", none}, {"optimizer", "sgd"}, {"crossover_batch", nullptr}}),
       document("segments", {{"rows", none}, {"layers", 0}, {"sqrt_segments", 0}}),
       document("limits", {{"rows", none}, {"plain", {{"peak_bytes", 0}, {"step_ms_median", 0}}}}),
       document("max_batch", {{"rows", none}, {"limit_bytes", 0}}),
       document("pareto", {{"series", none}, {"plain", {{"peak_bytes", 0}, {"step_ms_median", 0}}}}),
       document(
           "advice",
           {{"limit_bytes", 0}, {"fits_plainly", true}, {"choice", nullptr}, {"candidates", none}, {"reasons", none}}),
       document("timeline", {{"strategy", "none"},
                             {"base_bytes", 0},
                             {"peak_bytes", 0},
                             {"phases", none},
                             {"points", none},
                             {"kinds", Json::object()},
                             {"peak", {{"t_us", 0}, {"bytes", 0}, {"by_kind", Json::object()}, {"top", none}}},
                             {"allocations", 0},
                             {"measured_overhead", 0}})});
}

TEST(Report, DrawsNothingOnePointAndTheLargestNumbers) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1} << 20, kMost}) {
    for (const double ms : {0.0, 1e-6, 1e12}) {
      SCOPED_TRACE(std::to_string(bytes) + " bytes, " + std::to_string(ms) + " ms");
      const Json one = Json::array({strategy("a", bytes, ms)});
      const Json parts{{"parameters", bytes},
                       {"gradients", bytes},
                       {"optimizer_states", bytes},
                       {"activations", bytes},
                       {"temporaries", bytes}};
      const Json segments{{"segments", 1},
                          {"after_forward_bytes", bytes},
                          {"peak_bytes", bytes},
                          {"step_ms_median", ms},
                          {"predicted_peak_bytes", bytes}};
      const Json points = Json::array({Json::array({0, bytes})});
      expect_sound(
          {document("bench", {{"strategies", one}}),
           document("depths", {{"rows", {{{"depth", 0}, {"strategies", one}}}}}),
           document("breakdown", {{"rows", {{{"batch", 1}, {"estimated", parts}, {"measured", parts}}}},
                                  {"optimizer", "adam"},
                                  {"crossover_batch", 1e9}}),
           document("segments", {{"rows", {segments}},
                                 {"layers", 1},
                                 {"sqrt_segments", 1},
                                 {"plain", segments},
                                 {"per_layer", segments}}),
           document("pareto",
                    {{"plain", segments},
                     {"floor_bytes", bytes},
                     {"series",
                      {{{"name", "s"},
                        {"points", {{{"peak_bytes", bytes}, {"added_ms", -ms}, {"overhead", ms > 0 ? -1 : 0}}}}}}}}),
           document("limits", {{"plain", segments},
                               {"rows",
                                {{{"percent", 100},
                                  {"heuristic", "h"},
                                  {"limit_bytes", bytes},
                                  {"fits", true},
                                  {"peak_bytes", bytes},
                                  {"step_ms_median", ms},
                                  {"added_ms_median", -ms},
                                  {"overhead", ms > 0 ? -1 : 0},
                                  {"evictions", bytes},
                                  {"recomputes", bytes},
                                  {"choosing_ms", ms},
                                  {"bit_equal", false}},
                                 {{"percent", 1}, {"heuristic", "h"}, {"limit_bytes", 0}, {"fits", false}}}}}),
           document("max_batch", {{"rows",
                                   {{{"strategy", "none"},
                                     {"max_batch", bytes},
                                     {"peak_bytes", bytes},
                                     {"next_peak_bytes", bytes},
                                     {"factor", 1},
                                     {"trials", Json::array()}}}},
                                  {"limit_bytes", bytes}}),
           document("timeline",
                    {{"strategy", "none"},
                     {"base_bytes", bytes},
                     {"peak_bytes", bytes},
                     {"phases", {{{"name", "forward"}, {"begin_us", 0}, {"end_us", 0}}}},
                     {"points", points},
                     {"kinds", {{"other", points}}},
                     {"peak", {{"t_us", 0}, {"bytes", bytes}, {"by_kind", {{"other", bytes}}}, {"top", Json::array()}}},
                     {"allocations", 1},
                     {"measured_overhead", 0}})});
    }
  }
}

/// Every string of `value` replaced, but those that must be one of a few.
void replace_strings(Json& value, const std::string& text, const std::string& key = "") {
  if (value.is_string()) {
    if (key != "kind" && key != "phase" && key != "role") value = text;
  } else if (value.is_structured()) {
    for (auto& [name, member] : value.items()) {
      if (name != "phases") replace_strings(member, text, name);
    }
  }
}

TEST(Report, HostileStringsAreHarmless) {
  const std::string hostile = "</script><script>alert('x')</script>\"><img onerror=x>]]>&";
  for (const auto& name : kSamples) {
    SCOPED_TRACE(name);
    Json changed = sample(name);
    replace_strings(changed, hostile);
    changed["config"][hostile] = hostile;
    expect_sound({changed});
    const std::string page = html({changed});
    EXPECT_EQ(page.find("<script>alert"), std::string::npos);
    EXPECT_EQ(page.find("<img"), std::string::npos);
    EXPECT_NE(page.find("&lt;script&gt;"), std::string::npos);
  }
}

TEST(Report, NamesTheMalformedMember) {
  struct Case {
    std::string sample;
    std::string pointer;
    Json value;
    std::string says;
  };
  const std::vector<Case> cases{
      {"bench", "/kind", "bunch",
       "found kind \"bunch\" version 1, expected one to draw, version 1 of kind advice, bench"},
      {"bench", "/version", 2, "found kind \"bench\" version 2, expected kind \"bench\" version 1"},
      {"bench", "/version", nullptr, "found kind \"bench\" without a version, expected kind \"bench\" version 1"},
      {"bench", "/strategies", "x", "`strategies`: found \"x\", expected a list"},
      {"bench", "/strategies/1/peak_bytes", 1.5, "`strategies[1].peak_bytes`: found 1.5, expected a number of bytes"},
      {"bench", "/strategies/1/peak_bytes", -1, "found -1"},
      {"bench", "/strategies/1/peak_bytes", 9223372036854775808u, "found 9223372036854775808"},
      {"bench", "/strategies/0/step_ms_median", nullptr, "found null, expected a time"},
      {"bench", "/strategies/0/step_ms_median", -3, "expected a time, 0 or more"},
      {"bench", "/strategies/0/added_ms_median", std::numeric_limits<double>::infinity(), "expected a number"},
      {"bench", "/strategies/0/name", 3, "`strategies[0].name`: found 3, expected a text"},
      {"bench", "/strategies/0/bit_equal", "yes", "expected true or false"},
      {"bench", "/strategies/0", Json::array(), "`strategies[0]`: found a list, expected an object"},
      {"bench", "/config", 1, "`config`: found 1, expected an object"},
      {"timeline_none", "/kinds/activations", Json::array(), "`kinds.activations`"},
      {"timeline_none", "/points/3", Json::array({1}), "`points[3]`: found a list, expected a pair"},
      {"timeline_none", "/points/3/0", -5, "expected a time not before"},
      {"timeline_none", "/phases/0/name", "sideways", "expected forward, recompute, backward or optimizer"},
      {"timeline_none", "/phases/0/end_us", -1, "expected a time not before `begin_us`"},
      {"timeline_none", "/peak/top/0/kind", "x", "`peak.top[0].kind`"},
      {"breakdown", "/rows/2/measured", Json::object(),
       "`rows[2].measured.parameters`: found nothing, expected this member"},
      {"max_batch", "/rows/0/trials/0/fits", 1, "`rows[0].trials[0].fits`"},
      {"segments", "/sqrt_segments", "8", "`sqrt_segments`"},
      {"limits", "/rows/0/overhead", "8", "`rows[0].overhead`: found \"8\", expected a number"},
      {"limits", "/rows/0/fits", nullptr, "`rows[0].fits`"},
      {"limits", "/published/0/plain_gb", 0, "`published[0].plain_gb`: found 0, expected more than 0"},
      {"pareto", "/series/0/points/1/overhead", nullptr,
       "`series[0].points[1].overhead`: found null, expected a number"},
      {"pareto", "/series/2/role", "guessed",
       "`series[2].role`: found \"guessed\", expected planned, measured or bound"},
      {"pareto", "/floor_bytes", -1, "`floor_bytes`: found -1"},
      {"advice", "/reasons/0", 1, "`reasons[0]`"},
      {"depths", "/rows/0/strategies/0/peak_bytes", "1", "`rows[0].strategies[0].peak_bytes`"},
  };
  for (const auto& [name, pointer, value, says] : cases) {
    Json changed = sample(name);
    changed[Json::json_pointer(pointer)] = value;
    const std::string message = message_of(changed, {"a.json"});
    EXPECT_NE(message.find(says), std::string::npos) << name << pointer << ": " << message;
    EXPECT_EQ(message.find("[refrain::report] 'a.json': "), 0u) << message;
  }
}

/// Calls `visit` for each object within `value`, with a pointer to it.
void each_object(const Json& value, const Json::json_pointer& at,
                 const std::function<void(const Json::json_pointer&)>& visit) {
  if (value.is_object()) {
    visit(at);
    for (const auto& [name, member] : value.items()) each_object(member, at / name, visit);
  } else if (value.is_array()) {
    for (size_t i = 0; i < std::min<size_t>(value.size(), 2); ++i) each_object(value[i], at / i, visit);
  }
}

TEST(Report, AnyMemberMissingOrOfAnotherTypeIsAnErrorOrDrawn) {
  for (const auto& name : kSamples) {
    if (name == "timeline_none") continue;  // as the other one
    Json whole = sample(name);
    // long lists are slow and teach nothing more
    for (Json* list : {&whole["points"], &whole["kinds"]["temporary"], &whole["kinds"]["gradient"]}) {
      if (list->size() > 9) list->erase(list->begin() + 9, list->end());
    }
    if (!name.starts_with("timeline")) whole.erase("kinds"), whole.erase("points");
    each_object(whole, Json::json_pointer(), [&](const Json::json_pointer& at) {
      for (const auto& [member, value] : whole[at].items()) {
        for (const Json& other : {Json(), Json("text"), Json::object(), Json::array({1, 1e300})}) {
          Json changed = whole;
          changed[at][member] = other;
          message_of(changed);
        }
        Json changed = whole;
        changed[at].erase(member);
        message_of(changed);
      }
    });
  }
}

TEST(Report, NamesTheDocument) {
  EXPECT_NE(message_of(Json(3)).find("document 1"), std::string::npos);
  EXPECT_NE(message_of(Json::object()).find("found no `kind`"), std::string::npos);
  EXPECT_THROW(html({sample("bench"), Json::array()}), FormatError);
}

TEST(Report, LimitsThatDoNotFitAreNotKeptOrNotEqualAreSaid) {
  Json limits = sample("limits");
  const std::string sound = html({limits});
  EXPECT_NE(sound.find("does not fit <small>max-overhead exceeded</small>"), std::string::npos);
  EXPECT_NE(sound.find(" missing</small>"), std::string::npos);
  EXPECT_NE(sound.find("lru within 30 %: does not fit"), std::string::npos) << "a cross";
  EXPECT_EQ(sound.find("class=\"warning\""), std::string::npos);
  Json over = limits, unequal = limits;
  over["rows"][0]["peak_bytes"] = over["rows"][0]["limit_bytes"].get<int64_t>() + 1;
  EXPECT_NE(html({over}).find("Not all limits were kept"), std::string::npos);
  unequal["rows"][0]["bit_equal"] = false;
  EXPECT_NE(html({unequal}).find("bit-equal to the baseline"), std::string::npos);
}

TEST(Report, PlansThatCostManyTimesMoreAreOnlyInTheTable) {
  Json pareto = sample("pareto");
  EXPECT_NE(html({pareto}).find("Points that cost many times more are only in the table"), std::string::npos);
  pareto["series"].erase(4);  // greedy
  EXPECT_EQ(html({pareto}).find("many times more"), std::string::npos);
  EXPECT_EQ(html({pareto}).find("class=\"warning\""), std::string::npos);
  pareto["series"][1]["points"][0]["bit_equal"] = false;
  EXPECT_NE(html({pareto}).find("bit-equal to the baseline"), std::string::npos);
}

TEST(Report, TimelinesOfAModelShareTheirScale) {
  const Json low = sample("timeline_per_block"), high = sample("timeline_none");
  // the axis ends at 600 MiB for the higher; alone, the lower one's ends at 250
  const std::string alone = html({low}), both = html({low, high});
  EXPECT_EQ(alone.find(">300</text>"), std::string::npos);
  EXPECT_NE(both.substr(0, both.find("id=\"d2\"")).find(">300</text>"), std::string::npos);
}

TEST(Report, LooksAsItDid) {
  const std::string page = html({sample("bench")});
  const std::string main = page.substr(page.find("<main>"), page.find("</main>") - page.find("<main>")) + "</main>\n";
  const std::string path = kFolder + "/golden/bench.html";
  if (std::getenv("REFRAIN_UPDATE_GOLDEN")) std::ofstream(path) << main;
  EXPECT_EQ(main, read(path)) << "if this is meant, run with REFRAIN_UPDATE_GOLDEN=1 and read the difference";
}

}  // namespace
}  // namespace refrain::report
