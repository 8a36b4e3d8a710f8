#include "models/zoo.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <mutex>

#include "base/suggest.h"
#include "models/base.h"
#include "models/lstm.h"
#include "models/mlp.h"
#include "models/resnet.h"
#include "models/transformer.h"
#include "models/unet.h"
#include "refrain/error.h"

namespace refrain::models {
namespace {

/// A size is one of the model's own if its preset is not 0 (dropout: not negative).
struct Preset {
  const char* name;
  std::unique_ptr<TrainableModel> (*make)(const std::string&, const ModelOptions&);
  ModelOptions sizes;
};

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"mlp", make_mlp, {.batch = 64, .depth = 10, .width = 1024}},
      {"gptsmall", make_gpt, {.batch = 2, .seq = 128, .depth = 12, .width = 64, .vocab = 256, .dropout = 0.1}},
      {"gpt", make_gpt, {.batch = 8, .seq = 128, .depth = 8, .width = 256, .vocab = 256, .dropout = 0.1}},
      {"blocks-small", make_blocks, {.batch = 2, .seq = 128, .depth = 12, .width = 64}},
      {"blocks", make_blocks, {.batch = 8, .seq = 128, .depth = 8, .width = 256}},
      {"resnet18", make_resnet, {.batch = 8, .image_size = 128, .classes = 1000}},
      {"resnet50", make_resnet, {.batch = 8, .image_size = 128, .classes = 1000}},
      {"unet", make_unet, {.batch = 4, .image_size = 64, .width = 16}},
      {"lstm", make_lstm, {.batch = 8, .seq = 64, .depth = 2, .width = 128, .vocab = 256}},
  };
  return all;
}

struct SizeRule {
  const char* name;
  int64_t ModelOptions::*field;
  int64_t least, most;
};

constexpr std::array<SizeRule, 7> kSizeRules = {{
    {"batch", &ModelOptions::batch, 1, kMostBatch},
    {"seq", &ModelOptions::seq, 1, 65536},
    {"image_size", &ModelOptions::image_size, 8, 4096},
    {"depth", &ModelOptions::depth, 1, 4096},
    {"width", &ModelOptions::width, 1, 65536},
    {"vocab", &ModelOptions::vocab, 2, 1 << 20},
    {"classes", &ModelOptions::classes, 2, 1 << 20},
}};

ModelOptions resolve(const Preset& preset, const ModelOptions& asked) {
  ModelOptions sizes = preset.sizes;
  for (const auto& rule : kSizeRules) {
    const int64_t value = asked.*rule.field;
    if (value == 0) continue;
    if (sizes.*rule.field == 0) {
      throw InvalidArgument(
          fmt::format("{} {} for model {}: the model has no such size; leave it out", rule.name, value, preset.name));
    }
    if (value < rule.least || value > rule.most) {
      throw InvalidArgument(fmt::format("{} {} for model {}: expected {} to {} (preset: {})", rule.name, value,
                                        preset.name, rule.least, rule.most, sizes.*rule.field));
    }
    sizes.*rule.field = value;
  }
  if (!(asked.dropout < 0)) {
    if (sizes.dropout < 0) {
      throw InvalidArgument(
          fmt::format("dropout {} for model {}: the model has no dropout; leave it out", asked.dropout, preset.name));
    }
    if (!(asked.dropout < 1)) {
      throw InvalidArgument(fmt::format("dropout {} for model {}: expected at least 0 and below 1 (preset: {})",
                                        asked.dropout, preset.name, sizes.dropout));
    }
    sizes.dropout = asked.dropout;
  }
  sizes.seed = asked.seed;
  return sizes;
}

/// All of `known`, comma-separated, those most like `name` first.
std::string list_known(const std::string& name, const std::vector<std::string>& known) {
  auto names = nearest(name, known);
  for (const auto& other : known) {
    if (std::find(names.begin(), names.end(), other) == names.end()) names.push_back(other);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

/// The number of segments that `segments` or `segments:N` asks for.
std::optional<int64_t> segments_asked(const std::string& strategy, int64_t layers) {
  if (strategy == "segments") return suggest_segments(layers);
  const std::string prefix = "segments:";
  if (!strategy.starts_with(prefix) || strategy == "segments:N") return std::nullopt;
  int64_t count = 0;
  const char *begin = strategy.data() + prefix.size(), *end = strategy.data() + strategy.size();
  const auto [stop, error] = std::from_chars(begin, end, count);
  if (error != std::errc() || stop != end || count < 1 || count > layers) {
    throw InvalidArgument(fmt::format("strategy '{}': expected segments:N with N from 1 to {}, the number of layers",
                                      strategy, layers));
  }
  return count;
}

/// Seeds the default generator and puts its state back.
class DefaultGeneratorSeeded {
 public:
  explicit DefaultGeneratorSeeded(uint64_t seed) : generator_(at::detail::getDefaultCPUGenerator()) {
    std::lock_guard lock(generator_.mutex());
    before_ = generator_.get_state();
    generator_.set_current_seed(seed);
  }
  ~DefaultGeneratorSeeded() {
    std::lock_guard lock(generator_.mutex());
    generator_.set_state(before_);
  }

 private:
  at::Generator generator_;
  torch::Tensor before_;
};

}  // namespace

at::Generator own_generator(uint64_t seed) { return at::detail::createCPUGenerator(seed); }

void ModelBase::set_strategy(const std::string& strategy) {
  const std::string& wanted = strategy == "checkpoint" ? "per_block" : strategy;
  const int64_t layers = row_length();
  const auto asked = layers > 0 ? segments_asked(wanted, layers) : std::nullopt;
  auto known = strategies_;
  if (layers > 0) known.insert(known.end(), {"per_layer", "segments", "segments:N"});
  if (!asked && (wanted == "segments:N" || std::find(known.begin(), known.end(), wanted) == known.end())) {
    throw InvalidArgument(
        fmt::format("strategy '{}' for model {}: expected one of {}", strategy, name_, list_known(strategy, known)));
  }
  strategy_ = wanted;
  segments_ = asked ? std::optional(Segments(*asked)) : std::nullopt;
}

void ModelBase::set_batch(int64_t batch) {
  if (batch < least_batch() || batch > kMostBatch) {
    throw InvalidArgument(
        fmt::format("batch {} for model {}: expected {} to {}", batch, name_, least_batch(), kMostBatch));
  }
  options_.batch = batch;
}

torch::Tensor run_row(std::vector<Layer>& layers, const std::optional<Segments>& segments, torch::Tensor x) {
  if (segments) return checkpoint_sequential(layers, *segments, std::move(x));
  for (auto& layer : layers) x = layer(std::move(x));
  return x;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& preset : presets()) names.emplace_back(preset.name);
  return names;
}

std::unique_ptr<TrainableModel> make_model(const std::string& name, const ModelOptions& options) {
  for (const auto& preset : presets()) {
    if (name != preset.name) continue;
    const ModelOptions sizes = resolve(preset, options);
    DefaultGeneratorSeeded seeded(sizes.seed);
    return preset.make(name, sizes);
  }
  throw InvalidArgument(fmt::format("model '{}': expected one of {}", name, list_known(name, model_names())));
}

}  // namespace refrain::models
