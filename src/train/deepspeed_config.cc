#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "base/suggest.h"
#include "refrain/activation_checkpointing.h"
#include "refrain/error.h"

namespace refrain {
namespace {

using nlohmann::json;

constexpr const char* kSection = "activation_checkpointing";

[[noreturn]] void refuse(const std::string& what) { throw FormatError("[refrain::from_deepspeed_json] " + what); }

bool read_bool(const std::string& key, const json& value) {
  if (!value.is_boolean()) refuse(fmt::format("{} is {}, expected true or false.", key, value.dump()));
  return value.get<bool>();
}

// DeepSpeed writes null where no number is given.
int64_t read_count(const std::string& key, const json& value) {
  if (value.is_null()) return 0;
  const bool fits = value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
  if (!fits || value.get<int64_t>() < 0)
    refuse(fmt::format("{} is {}, expected a whole number >= 0 or null.", key, value.dump()));
  return value.get<int64_t>();
}

using Options = ActivationCheckpointingOptions;
using Setter = void (*)(Options&, const std::string& key, const json& value);

const std::vector<std::pair<std::string, Setter>>& keys() {
  static const std::vector<std::pair<std::string, Setter>> all{
      {"partition_activations",
       [](Options& o, const std::string& k, const json& v) { o.partition_activations(read_bool(k, v)); }},
      {"contiguous_memory_optimization",
       [](Options& o, const std::string& k, const json& v) { o.contiguous_memory_optimization(read_bool(k, v)); }},
      {"cpu_checkpointing",
       [](Options& o, const std::string& k, const json& v) { o.cpu_checkpointing(read_bool(k, v)); }},
      {"number_checkpoints",
       [](Options& o, const std::string& k, const json& v) { o.number_checkpoints(read_count(k, v)); }},
      {"synchronize_checkpoint_boundary",
       [](Options& o, const std::string& k, const json& v) { o.synchronize_checkpoint_boundary(read_bool(k, v)); }},
      {"profile", [](Options& o, const std::string& k, const json& v) { o.profile(read_bool(k, v)); }},
  };
  return all;
}

Setter setter_of(const std::string& key) {
  std::vector<std::string> known;
  for (const auto& [name, setter] : keys()) {
    if (name == key) return setter;
    known.push_back(name);
  }
  const auto near = nearest(key, known);
  refuse(fmt::format("unknown key `{}` in \"{}\"{} Known: {}.", key, kSection,
                     near.empty() ? "." : fmt::format("; did you mean `{}`?", fmt::join(near, "`, `")),
                     fmt::join(known, ", ")));
}

}  // namespace

ActivationCheckpointingOptions ActivationCheckpointingOptions::from_deepspeed_json(std::string_view text) {
  json document;
  try {
    document = json::parse(text, nullptr, true, /*ignore_comments=*/true);
  } catch (const json::parse_error& error) {
    refuse(fmt::format("not valid JSON at byte {}: {}", error.byte, error.what()));
  }
  if (document.is_object() && document.contains(kSection)) document = json(document[kSection]);
  if (!document.is_object())
    refuse(fmt::format("found {}, expected an object: a DeepSpeed configuration or its \"{}\" section.",
                       document.dump(), kSection));
  ActivationCheckpointingOptions options;
  for (const auto& [key, value] : document.items()) setter_of(key)(options, key, value);
  return options;
}

}  // namespace refrain
