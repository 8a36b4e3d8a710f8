#include "apps/refrain/steps.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <mutex>
#include <thread>

#include "apps/refrain/budget_strategy.h"
#include "refrain/memory.h"
#include "refrain/version.h"

namespace refrain::cli {
namespace {

std::optional<torch::ScalarType> amp_dtype(const std::string& name) {
  if (name == "bf16") return torch::kBFloat16;
  if (name == "f16") return torch::kHalf;
  return std::nullopt;
}

}  // namespace

std::unique_ptr<models::TrainableModel> build_model(const ModelArgs& args) {
  if (args.threads > 0) at::set_num_threads(args.threads);
  models::ModelOptions sizes;
  sizes.batch = args.batch;
  sizes.seq = args.seq;
  sizes.image_size = args.image_size;
  sizes.depth = args.depth;
  sizes.width = args.width;
  sizes.vocab = args.vocab;
  sizes.classes = args.classes;
  sizes.dropout = args.dropout;
  sizes.seed = args.seed;
  sizes.amp = amp_dtype(args.amp);
  sizes.offload_dir = args.offload_dir;
  return models::make_model(args.name, sizes);
}

std::vector<std::string> choose_strategies(models::TrainableModel& model, const std::string& strategy) {
  if (strategy == "all") return model.strategies();
  set_model_strategy(model, strategy);
  return {strategy};
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const std::string& kind, double lr, torch::nn::Module& module) {
  using namespace torch::optim;
  const auto parameters = module.parameters();
  if (kind == "sgd") return std::make_unique<SGD>(parameters, SGDOptions(lr > 0 ? lr : 0.01).momentum(0.9));
  if (kind == "adam") return std::make_unique<Adam>(parameters, AdamOptions(lr > 0 ? lr : 0.001));
  return std::make_unique<AdamW>(parameters, AdamWOptions(lr > 0 ? lr : 0.001));
}

void set_learning_rate(torch::optim::Optimizer& optimizer, double value) {
  for (auto& group : optimizer.param_groups()) group.options().set_lr(value);
}

void set_weight_decay(torch::optim::Optimizer& optimizer, double value) {
  using namespace torch::optim;
  for (auto& group : optimizer.param_groups()) {
    if (auto* const sgd = dynamic_cast<SGDOptions*>(&group.options())) sgd->weight_decay(value);
    if (auto* const adam = dynamic_cast<AdamOptions*>(&group.options())) adam->weight_decay(value);
    if (auto* const adamw = dynamic_cast<AdamWOptions*>(&group.options())) adamw->weight_decay(value);
  }
}

GradScaler make_scaler(const models::TrainableModel& model, GradScalerOptions options) {
  return GradScaler(options.enabled(model.options().amp == torch::kHalf));
}

ResidentWatch::ResidentWatch() {
  release_free_memory();
  reset_peak_memory();
  start_ = memory_stats().resident;
}

Bytes ResidentWatch::growth() const { return memory_stats().resident_peak - start_; }

void drop_gradients(torch::nn::Module& module) {
  for (auto& parameter : module.parameters()) parameter.mutable_grad().reset();
}

torch::Tensor generator_state() {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void set_generator_state(const torch::Tensor& state) {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

namespace {

const char* amp_name(torch::ScalarType dtype) { return dtype == torch::kHalf ? "f16" : "bf16"; }

}  // namespace

std::string title(const models::TrainableModel& model) {
  const auto amp = model.options().amp;
  return amp ? fmt::format("{} with {} autocast", model.name(), amp_name(*amp)) : model.name();
}

Json config_json(const models::TrainableModel& model) {
  const auto& o = model.options();
  Json json;
  const std::pair<const char*, int64_t> sizes[] = {
      {"batch", o.batch}, {"seq", o.seq},     {"image_size", o.image_size}, {"depth", o.depth},
      {"width", o.width}, {"vocab", o.vocab}, {"classes", o.classes}};
  for (const auto& [name, value] : sizes) {
    if (value != 0) json[name] = value;
  }
  if (!(o.dropout < 0)) json["dropout"] = o.dropout;
  json["seed"] = o.seed;
  if (o.amp) json["amp"] = amp_name(*o.amp);
  return json;
}

namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.find(": ") + 2, line.size()));
  }
  return "unknown";
}

}  // namespace

Bytes machine_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  Bytes kib = 0;
  file >> key >> kib;
  return kib * 1024;
}

Json machine_json() {
  utsname system{};
  uname(&system);
  Json json;
  json["processor"] = processor_name();
  json["cores"] = std::thread::hardware_concurrency();
  json["threads"] = at::get_num_threads();
  json["system"] = fmt::format("{} {} {}", system.sysname, system.release, system.machine);
  json["compiler"] = __VERSION__;
  json["libtorch"] = TORCH_VERSION;
  json["refrain"] = REFRAIN_VERSION;
  return json;
}

Json document_json(const std::string& kind, const std::string& model, const Json& config) {
  return {{"kind", kind}, {"version", 1}, {"model", model}, {"config", config}, {"machine", machine_json()}};
}

double spread(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double part) {
    const double at = part * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
  };
  return (quantile(0.75) - quantile(0.25)) / 2;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace refrain::cli
