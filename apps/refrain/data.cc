#include "apps/refrain/data.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <random>

#include "apps/refrain/image_files.h"
#include "apps/refrain/json_file.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

using models::Batch;

constexpr int64_t kLabels = 10;

std::mt19937_64 generator_of(uint64_t seed, int64_t step) {
  std::seed_seq mixed{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(step),
                      static_cast<uint32_t>(step >> 32)};
  return std::mt19937_64(mixed);
}

class SyntheticData final : public DataSource {
 public:
  SyntheticData(models::TrainableModel& model, uint64_t seed) : model_(model), seed_(seed) {}
  Batch batch(int64_t step) override { return model_.synthetic_batch(seed_ + static_cast<uint64_t>(step % 4)); }

 private:
  models::TrainableModel& model_;
  uint64_t seed_;
};

/// Random windows of a file, each byte a token; the target is the same one byte on.
class TextData final : public DataSource {
 public:
  TextData(std::string text, int64_t batch, int64_t seq, uint64_t seed)
      : text_(std::move(text)), batch_(batch), seq_(seq), seed_(seed) {}

  Batch batch(int64_t step) override {
    auto generator = generator_of(seed_, step);
    Batch result{torch::empty({batch_, seq_}, torch::kLong), torch::empty({batch_, seq_}, torch::kLong)};
    auto* input = result.input.mutable_data_ptr<int64_t>();
    auto* target = result.target.mutable_data_ptr<int64_t>();
    const uint64_t starts = text_.size() - static_cast<uint64_t>(seq_);
    for (int64_t row = 0; row < batch_; ++row) {
      const size_t start = generator() % starts;
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
  uint64_t seed_;
};

/// Random images, brought to the shapes of `like`.
class ImageData final : public DataSource {
 public:
  ImageData(ImageSet set, Batch like, uint64_t seed) : set_(std::move(set)), like_(std::move(like)), seed_(seed) {}

  Batch batch(int64_t step) override {
    auto generator = generator_of(seed_, step);
    const int64_t n = like_.input.size(0);
    const auto bytes = static_cast<size_t>(set_.channels * set_.height * set_.width);
    auto raw = torch::empty({n, set_.channels, set_.height, set_.width}, torch::kByte);
    auto labels = torch::empty({n}, torch::kLong);
    for (int64_t i = 0; i < n; ++i) {
      const size_t pick = generator() % set_.labels.size();
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
  uint64_t seed_;
};

std::unique_ptr<DataSource> open_text(const std::string& path, models::TrainableModel& model, uint64_t seed) {
  const auto& sizes = model.options();
  if (sizes.vocab == 0) {
    throw InvalidArgument(
        fmt::format("data 'text:{}' for model {}: it reads no tokens; use gpt, gptsmall or lstm", path, model.name()));
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
  return std::make_unique<TextData>(std::move(text), sizes.batch, sizes.seq, seed);
}

/// Before reading 180 MB for nothing.
void check_takes_images(const std::string& spec, models::TrainableModel& model) {
  const auto like = model.synthetic_batch(0);
  const bool is_rows = like.input.dim() == 2 && like.input.is_floating_point() && like.target.defined();
  if (like.input.dim() != 4 && !is_rows) {
    throw InvalidArgument(fmt::format("data '{}' for model {}: it reads no images; use resnet18, resnet50, unet or mlp",
                                      spec, model.name()));
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

std::unique_ptr<DataSource> open_data(const std::string& spec, models::TrainableModel& model, uint64_t seed) {
  const std::string kind = spec.substr(0, spec.find(':'));
  const std::string path = kind.size() < spec.size() ? spec.substr(kind.size() + 1) : "";
  if (spec == "synthetic") return std::make_unique<SyntheticData>(model, seed);
  if (path.empty() || (kind != "text" && kind != "cifar10" && kind != "mnist")) {
    throw InvalidArgument(fmt::format("data '{}': expected text:FILE, cifar10:DIR, mnist:DIR or synthetic", spec));
  }
  if (kind == "text") return open_text(path, model, seed);
  check_takes_images(spec, model);
  auto set = kind == "mnist" ? read_mnist(path) : read_cifar10(path);
  return std::make_unique<ImageData>(std::move(set), model.synthetic_batch(seed), seed);
}

}  // namespace refrain::cli
