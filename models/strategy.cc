#include "models/strategy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/suggest.h"
#include "refrain/error.h"
#include "refrain/selective.h"

namespace refrain::models {
namespace {

struct NamedPolicy {
  const char* name;
  Policy (*make)();
};

constexpr NamedPolicy kPolicies[] = {{"compute_intensive", save_compute_intensive},
                                     {"matmuls", save_matmuls},
                                     {"dots", dots_saveable},
                                     {"every_second_matmul", save_every_second_matmul},
                                     {"random", save_random},
                                     {"everything", everything_saveable},
                                     {"nothing", nothing_saveable}};

Policy policy_named(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& known : kPolicies) {
    if (name == known.name) return known.make();
    names.emplace_back(known.name);
  }
  throw InvalidArgument(
      fmt::format("strategy 'selective:{}': expected after the colon one of {}", name, list_known(name, names)));
}

/// @param detail  what follows the colon, if there is one.
/// @return null if `place` is not around each block, or takes no such detail.
std::optional<CheckpointOptions> block_options(const std::string& place, const std::optional<std::string>& detail) {
  if (place == "per_block" && !detail) return CheckpointOptions();
  if (place == "selective") return CheckpointOptions().policy(policy_named(detail.value_or("compute_intensive")));
  return std::nullopt;
}

std::optional<OffloadTo> offload_asked(const std::string& detail) {
  if (detail == "disk") return OffloadTo::kDisk;
  if (detail == "host") return OffloadTo::kHost;
  return std::nullopt;
}

Segments segments_asked(const std::string& text, const std::optional<std::string>& detail, int64_t layers) {
  if (!detail) return Segments(suggest_segments(layers));
  int64_t count = 0;
  const char *begin = detail->data(), *end = begin + detail->size();
  const auto [stop, error] = std::from_chars(begin, end, count);
  if (error != std::errc() || stop != end || count < 1 || count > layers) {
    throw InvalidArgument(
        fmt::format("strategy '{}': expected segments:N with N from 1 to {}, the number of layers", text, layers));
  }
  return Segments(count);
}

}  // namespace

std::string list_known(const std::string& name, const std::vector<std::string>& known) {
  auto names = nearest(name, known);
  for (const auto& other : known) {
    if (std::find(names.begin(), names.end(), other) == names.end()) names.push_back(other);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

Strategy parse_strategy(const std::string& text, const std::string& model, std::vector<std::string> places,
                        int64_t layers) {
  const size_t colon = text.find(':');
  const auto detail = colon == std::string::npos ? std::nullopt : std::optional(text.substr(colon + 1));
  Strategy strategy{.place = text == "checkpoint" ? "per_block" : text.substr(0, colon)};
  const auto offers = [&](const char* place) { return std::find(places.begin(), places.end(), place) != places.end(); };
  if (layers > 0) {
    for (const char* place : {"per_layer", "segments"})
      if (!offers(place)) places.emplace_back(place);
  }
  if (offers(strategy.place.c_str())) {
    if (strategy.place == "segments") {
      strategy.segments = segments_asked(text, detail, layers);
      return strategy;
    }
    strategy.block = block_options(strategy.place, detail);
    if (strategy.block || !detail) return strategy;
  }
  if (layers > 0) places.emplace_back("segments:N");
  if (offers("selective")) {
    strategy.offload = strategy.place == "offload" ? offload_asked(detail.value_or("")) : std::nullopt;
    strategy.block = CheckpointOptions().policy(offload_compute_intensive());
    if (strategy.offload) return strategy;
    places.insert(places.end(), {"selective:POLICY", "offload:disk", "offload:host"});
  }
  throw InvalidArgument(
      fmt::format("strategy '{}' for model {}: expected one of {}", text, model, list_known(text, places)));
}

}  // namespace refrain::models
