#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "graph/json.h"
#include "graph/random_graph.h"
#include "graph/text.h"

/// Changed documents are refused with a reason or read into something sound. Best under the sanitizers.
///
/// REFRAIN_FUZZ_DOCUMENTS=40000  documents to read
/// REFRAIN_FUZZ_SEED=1           seed of the first; a failing seed with REFRAIN_FUZZ_DOCUMENTS=1 runs that one again
namespace refrain::graph {
namespace {

using Json = nlohmann::json;

uint64_t env_number(const char* name, uint64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  size_t below(size_t end) { return random_() % end; }

  std::string text(std::string text) {
    for (size_t i = below(3) == 0 ? 1 + below(4) : 1; i > 0; --i) change(text);
    return text;
  }

  /// One or some members become something else, or go.
  void document(Json& json) {
    for (size_t i = below(3) == 0 ? 1 + below(4) : 1; i > 0; --i) {
      Json* at = &json;
      while (at->is_structured() && !at->empty() && below(8) != 0) at = &child(*at);
      if (at->is_array() && !at->empty() && below(2) == 0)
        at->erase(below(at->size()));
      else if (at->is_object() && !at->empty() && below(2) == 0)
        at->erase(std::next(at->begin(), static_cast<std::ptrdiff_t>(below(at->size()))));
      else
        *at = other(*at);
    }
  }

 private:
  static constexpr const char* kPieces[] = {"[",
                                            "]",
                                            "{",
                                            "}",
                                            ",",
                                            ":",
                                            "\"",
                                            "null",
                                            "true",
                                            "-1",
                                            "0",
                                            "1e400",
                                            "1e9",
                                            "9223372036854775807",
                                            "9223372036854775808",
                                            "-9223372036854775808",
                                            "2147483647",
                                            "4294967296",
                                            "\\u0000",
                                            "\xff",
                                            "\\"};

  /// Mostly one that goes deeper: what stands at the top is refused at once.
  Json& child(Json& json) {
    const auto any = [&]() -> Json& {
      return *std::next(json.begin(), static_cast<std::ptrdiff_t>(below(json.size())));
    };
    for (int tries = 0; tries < 4; ++tries)
      if (Json& found = any(); found.is_structured()) return found;
    return any();
  }

  void change(std::string& text) {
    const size_t at = below(text.size() + 1);
    switch (below(6)) {
      case 0:
        text.resize(at);
        break;
      case 1:
        text.erase(at, 1 + below(20));
        break;
      case 2:
        text.insert(at, kPieces[below(std::size(kPieces))]);
        break;
      case 3:
        text.insert(at, text.substr(below(text.size() + 1), below(60)));
        break;
      case 4:
        text.replace(at, std::min(text.size() - at, below(4)), kPieces[below(std::size(kPieces))]);
        break;
      default:
        if (at < text.size()) text[at] = static_cast<char>(random_());
    }
    if (text.empty()) text = "{}";
  }

  Json other(const Json& json) {
    if (json.is_number_integer() && below(4) != 0) {
      constexpr int64_t kNumbers[] = {-1,        0,        1, 2, 1000, INT32_MAX, int64_t{1} << 32, int64_t{1} << 53,
                                      INT64_MAX, INT64_MIN};
      const auto near = static_cast<int64_t>(json.get<uint64_t>() + below(5) - 2);  // may wrap around
      return below(2) == 0 ? near : kNumbers[below(std::size(kNumbers))];
    }
    const Json kOthers[] = {nullptr, true, "text", 1.5, Json::array(), Json::object(), -1, UINT64_MAX};
    return kOthers[below(std::size(kOthers))];
  }

  std::mt19937_64 random_;
};

struct Seen {
  int64_t read = 0, refused = 0, schedules = 0;
};

/// What was read is sound, and is written and read the same.
void check(const std::string& text, const Graph& other, Seen& seen) {
  const auto read = read_graph(text);
  if (const auto* error = std::get_if<FormatError>(&read)) {
    ++seen.refused;
    EXPECT_EQ(std::string(error->what()).substr(0, 17), "[refrain::graph] ");
  } else {
    ++seen.read;
    const Graph& graph = std::get<Graph>(read);
    EXPECT_EQ(find_defect(graph), "");
    const auto again = read_graph(to_json(graph));
    ASSERT_TRUE(std::holds_alternative<Graph>(again)) << std::get<FormatError>(again).what();
    EXPECT_EQ(to_text(std::get<Graph>(again)), to_text(graph));
    EXPECT_EQ(simulate(graph, empty_schedule(graph)).error, "");
  }
  const auto schedule = read_schedule(text, other);
  if (!std::holds_alternative<Schedule>(schedule)) return;
  ++seen.schedules;
  simulate(other, std::get<Schedule>(schedule));
}

TEST(JsonFuzz, AnyBytesAreReadOrRefused) {
  const uint64_t documents = env_number("REFRAIN_FUZZ_DOCUMENTS", 40'000);
  const uint64_t first = env_number("REFRAIN_FUZZ_SEED", 1);
  Seen seen;
  for (uint64_t seed = first; seed < first + documents && !HasFatalFailure() && !HasNonfatalFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const Graph graph = random_graph(seed % 64);
    Mutator mutator(seed);
    std::string text = mutator.below(3) == 0 ? to_json(graph, random_schedule(graph, seed, 0.1)) : to_json(graph);
    if (mutator.below(2) == 0) {
      Json json = Json::parse(text);
      mutator.document(json);
      text = json.dump();
    } else {
      text = mutator.text(text);
    }
    check(text, graph, seen);
  }
  std::printf("%llu documents: %lld graphs and %lld schedules read, %lld refused as graphs\n",
              static_cast<unsigned long long>(documents), static_cast<long long>(seen.read),
              static_cast<long long>(seen.schedules), static_cast<long long>(seen.refused));
  if (documents < 1000) return;
  EXPECT_GT(seen.read, static_cast<int64_t>(documents / 50));  // else the test says little
  EXPECT_GT(seen.schedules, static_cast<int64_t>(documents / 50));
  EXPECT_GT(seen.refused, static_cast<int64_t>(documents / 4));
}

}  // namespace
}  // namespace refrain::graph
