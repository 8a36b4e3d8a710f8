#include "apps/refrain/data.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "apps/refrain/image_files.h"
#include "apps/refrain/json_file.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

using models::Batch;

constexpr int64_t kLabels = 10;

std::mt19937_64 generator_of(uint64_t seed, int64_t number) {
  std::seed_seq mixed{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(number),
                      static_cast<uint32_t>(number >> 32)};
  return std::mt19937_64(mixed);
}

/// Chooses examples of a data set, for batches of `rows`.
class Sampler {
 public:
  Sampler(uint64_t examples, int64_t rows, uint64_t seed, Order order)
      : examples_(examples), rows_(static_cast<uint64_t>(rows)), seed_(seed), order_(order) {}

  std::vector<uint64_t> batch(int64_t number) {
    std::vector<uint64_t> chosen;
    auto generator = generator_of(seed_, number);
    for (uint64_t row = 0; row < rows_; ++row) {
      chosen.push_back(order_ == Order::kRandom ? generator() % examples_
                                                : in_turn(static_cast<uint64_t>(number) * rows_ + row));
    }
    return chosen;
  }

 private:
  uint64_t in_turn(uint64_t position) {
    const auto epoch = static_cast<int64_t>(position / examples_);
    if (epoch != epoch_) shuffle(epoch);
    return shuffled_[position % examples_];
  }
  void shuffle(int64_t epoch) {
    shuffled_.resize(examples_);
    std::iota(shuffled_.begin(), shuffled_.end(), uint64_t{0});
    auto generator = generator_of(seed_, epoch);
    // not std::shuffle, which differs between standard libraries
    for (uint64_t end = examples_; end > 1; --end) std::swap(shuffled_[end - 1], shuffled_[generator() % end]);
    epoch_ = epoch;
  }

  uint64_t examples_, rows_, seed_;
  Order order_;
  std::vector<uint64_t> shuffled_;
  int64_t epoch_ = -1;  ///< of `shuffled_`
};

class SyntheticData final : public DataSource {
 public:
  SyntheticData(models::TrainableModel& model, uint64_t seed) : model_(model), seed_(seed) {}
  Batch batch(int64_t number) override { return model_.synthetic_batch(seed_ + static_cast<uint64_t>(number % 4)); }
  int64_t examples() const override { return 0; }

 private:
  models::TrainableModel& model_;
  uint64_t seed_;
};

/// Windows of a file, each byte a token; the target is the same one byte on. Random ones begin anywhere.
class TextData final : public DataSource {
 public:
  TextData(std::string text, int64_t batch, int64_t seq, uint64_t seed, Order order)
      : text_(std::move(text)),
        batch_(batch),
        seq_(seq),
        stride_(order == Order::kRandom ? 1 : static_cast<uint64_t>(seq)),
        sampler_(
            order == Order::kRandom ? text_.size() - static_cast<uint64_t>(seq_) : static_cast<uint64_t>(examples()),
            batch, seed, order) {}

  int64_t examples() const override { return (static_cast<int64_t>(text_.size()) - 1) / seq_; }

  Batch batch(int64_t number) override {
    Batch result{torch::empty({batch_, seq_}, torch::kLong), torch::empty({batch_, seq_}, torch::kLong)};
    auto* input = result.input.mutable_data_ptr<int64_t>();
    auto* target = result.target.mutable_data_ptr<int64_t>();
    for (const uint64_t pick : sampler_.batch(number)) {
      const size_t start = pick * stride_;
      for (int64_t i = 0; i < seq_; ++i, ++input, ++target) {
        *input = static_cast<uint8_t>(text_[start + static_cast<size_t>(i)]);
        *target = static_cast<uint8_t>(text_[start + static_cast<size_t>(i) + 1]);
      }
    }
    return result;
  }

 private:
  std::string text_;
  int64_t batch_, seq_;
  uint64_t stride_;
  Sampler sampler_;
};

/// Images, brought to the shapes of `like`.
class ImageData final : public DataSource {
 public:
  ImageData(ImageSet set, Batch like, uint64_t seed, Order order)
      : set_(std::move(set)), like_(std::move(like)), sampler_(set_.labels.size(), like_.input.size(0), seed, order) {}

  int64_t examples() const override { return static_cast<int64_t>(set_.labels.size()); }

  Batch batch(int64_t number) override {
    const int64_t n = like_.input.size(0);
    const auto bytes = static_cast<size_t>(set_.channels * set_.height * set_.width);
    auto raw = torch::empty({n, set_.channels, set_.height, set_.width}, torch::kByte);
    auto labels = torch::empty({n}, torch::kLong);
    const auto picks = sampler_.batch(number);
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t pick = picks[static_cast<size_t>(i)];
      std::memcpy(raw.mutable_data_ptr<uint8_t>() + static_cast<size_t>(i) * bytes, set_.pixels.data() + pick * bytes,
                  bytes);
      labels.mutable_data_ptr<int64_t>()[i] = set_.labels[pick];
    }
    auto images = raw.to(torch::kFloat).div_(127.5).sub_(1.0);
    return {input(images), target(images, labels)};
  }

 private:
  static torch::Tensor scale(const torch::Tensor& images, int64_t side) {
    if (images.size(2) == side && images.size(3) == side) return images;
    return torch::upsample_bilinear2d(images, {side, side}, false);
  }

  torch::Tensor input(const torch::Tensor& images) const {
    if (like_.input.dim() == 4) {
      return scale(images, like_.input.size(2)).expand({-1, 3, -1, -1}).contiguous();
    }
    const auto side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(like_.input.size(1)))));
    return scale(images.mean(1, true), side).flatten(1);
  }

  torch::Tensor target(const torch::Tensor& images, const torch::Tensor& labels) const {
    if (like_.target.dim() == 1) return labels;
    if (like_.target.dim() == 2) return torch::one_hot(labels, like_.target.size(1)).to(torch::kFloat);
    auto grey = scale(images.mean(1, true), like_.target.size(2));
    return (grey > 0).to(torch::kFloat);
  }

  ImageSet set_;
  Batch like_;
  Sampler sampler_;
};

std::unique_ptr<DataSource> open_text(const std::string& path, models::TrainableModel& model, uint64_t seed,
                                      Order order) {
  const auto& sizes = model.options();
  if (sizes.vocab == 0 || sizes.classes != 0) {
    throw InvalidArgument(fmt::format(
        "data 'text:{}' for model {}: the model reads no tokens; use gpt, gptsmall or lstm", path, model.name()));
  }
  std::string text = read_file(path, "a text");
  const auto least = static_cast<size_t>(sizes.seq) + 1;
  if (text.size() < least) {
    throw FormatError(
        fmt::format("'{}': found {} bytes; expected at least {} (seq + 1); use a longer text or a smaller --seq", path,
                    text.size(), least));
  }
  for (size_t i = 0; i < text.size(); ++i) {
    if (static_cast<uint8_t>(text[i]) < sizes.vocab) continue;
    throw FormatError(fmt::format("'{}': found byte {} at {}; expected below the vocabulary's {}; use --vocab 256",
                                  path, static_cast<uint8_t>(text[i]), i, sizes.vocab));
  }
  return std::make_unique<TextData>(std::move(text), sizes.batch, sizes.seq, seed, order);
}

/// Before reading 180 MB for nothing.
void check_takes_images(const std::string& spec, models::TrainableModel& model) {
  const auto like = model.synthetic_batch(0);
  const bool is_rows = like.input.dim() == 2 && like.input.is_floating_point() && like.target.defined();
  if (like.input.dim() != 4 && !is_rows) {
    throw InvalidArgument(fmt::format(
        "data '{}' for model {}: the model reads no images; use resnet18, resnet50, unet or mlp", spec, model.name()));
  }
  const int64_t labels = like.target.dim() == 2 ? like.target.size(1) : model.options().classes;
  if (labels != 0 && labels < kLabels) {
    throw InvalidArgument(
        fmt::format("data '{}' for model {}: found {} outputs; expected at least {}, one for each label; "
                    "use a larger --{}",
                    spec, model.name(), labels, kLabels, like.target.dim() == 2 ? "width" : "classes"));
  }
}

}  // namespace

std::unique_ptr<DataSource> open_data(const std::string& spec, models::TrainableModel& model, uint64_t seed,
                                      Order order) {
  const std::string kind = spec.substr(0, spec.find(':'));
  const std::string path = kind.size() < spec.size() ? spec.substr(kind.size() + 1) : "";
  if (spec == "synthetic") return std::make_unique<SyntheticData>(model, seed);
  if (path.empty() || (kind != "text" && kind != "cifar10" && kind != "mnist")) {
    throw InvalidArgument(fmt::format("data '{}': expected text:FILE, cifar10:DIR, mnist:DIR or synthetic", spec));
  }
  if (kind == "text") return open_text(path, model, seed, order);
  check_takes_images(spec, model);
  auto set = kind == "mnist" ? read_mnist(path) : read_cifar10(path);
  return std::make_unique<ImageData>(std::move(set), model.synthetic_batch(seed), seed, order);
}

}  // namespace refrain::cli
