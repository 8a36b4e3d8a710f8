#include "models/zoo.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "models/base.h"
#include "models/densenet.h"
#include "models/lstm.h"
#include "models/mlp.h"
#include "models/ragged_lstm.h"
#include "models/resnet.h"
#include "models/transformer.h"
#include "models/treelstm.h"
#include "models/unet.h"
#include "refrain/amp.h"
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
      {"densenet121", make_densenet, {.batch = 8, .image_size = 128, .classes = 1000}},
      {"unet", make_unet, {.batch = 4, .image_size = 64, .width = 16}},
      {"lstm", make_lstm, {.batch = 8, .seq = 64, .depth = 2, .width = 128, .vocab = 256}},
      {"lstm-ragged", make_ragged_lstm, {.batch = 8, .seq = 64, .depth = 2, .width = 128, .vocab = 256}},
      {"treelstm", make_treelstm, {.batch = 8, .seq = 24, .width = 128, .vocab = 256, .classes = 5}},
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
  sizes.amp = asked.amp;
  sizes.offload_dir = asked.offload_dir;
  return sizes;
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
  auto asked = parse_strategy(strategy, name_, strategies_, row_length());
  if (asked.offload) {
    const auto options = OffloadOptions().store(*asked.offload).directory(options_.offload_dir);
    auto found = stores_.find(*asked.offload);
    if (found == stores_.end()) found = stores_.emplace(*asked.offload, OffloadStore(options)).first;
    asked.block->offload(found->second);
  }
  strategy_ = std::move(asked);
}

const OffloadStore* ModelBase::offload_store() const {
  return strategy_.offload ? &stores_.at(*strategy_.offload) : nullptr;
}

torch::Tensor ModelBase::loss(const Batch& batch) {
  std::optional<AutocastScope> autocast;
  if (options_.amp) autocast.emplace(batch.input.device(), *options_.amp);
  auto output = forward(batch);
  autocast.reset();
  output = output.to(torch::kFloat);
  return criterion(output, batch);
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
