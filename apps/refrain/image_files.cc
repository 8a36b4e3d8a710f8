#include "apps/refrain/image_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "apps/refrain/json_file.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace fs = std::filesystem;
namespace {

constexpr size_t kCifarRecord = 1 + 3 * 32 * 32;

void check_folder(const std::string& dir, const std::string& expected) {
  std::error_code ignored;
  if (!fs::is_directory(dir, ignored)) {
    throw FormatError(fmt::format("'{}': not a folder; expected a folder with {}; check the path", dir, expected));
  }
}

void append_cifar(ImageSet& set, const std::string& path) {
  const std::string bytes = read_file(path, "a CIFAR-10 batch");
  if (bytes.empty() || bytes.size() % kCifarRecord != 0) {
    throw FormatError(
        fmt::format("'{}': found {} bytes; expected a multiple of {} (label, 3 x 32 x 32 pixels); "
                    "get the binary version again",
                    path, bytes.size(), kCifarRecord));
  }
  for (size_t at = 0; at < bytes.size(); at += kCifarRecord) {
    const auto label = static_cast<uint8_t>(bytes[at]);
    if (label > 9) {
      throw FormatError(fmt::format("'{}': found label {} at byte {}; expected 0 to 9; get the binary version again",
                                    path, label, at));
    }
    set.labels.push_back(label);
    set.pixels.append(bytes, at + 1, kCifarRecord - 1);
  }
}

uint32_t big_endian(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

/// The payload of an IDX file of unsigned bytes, its sizes in `sizes`.
std::string read_idx(const std::string& dir, const std::string& stem, uint32_t dims, std::vector<uint64_t>& sizes) {
  const std::string kind = fmt::format("idx{}-ubyte", dims);
  std::string path = fmt::format("{}/{}-{}", dir, stem, kind);
  if (const auto dotted = fmt::format("{}/{}.{}", dir, stem, kind); !fs::exists(path) && fs::exists(dotted))
    path = dotted;
  if (!fs::exists(path) && fs::exists(path + ".gz")) {
    throw FormatError(fmt::format("'{}.gz': found a compressed file; expected it unpacked; run gunzip on it", path));
  }
  std::string bytes = read_file(path, "an MNIST file");
  const size_t header = 4 + 4 * dims;
  if (bytes.size() < header) {
    throw FormatError(
        fmt::format("'{}': found {} bytes; expected at least {}; get the file again", path, bytes.size(), header));
  }
  const uint32_t magic = big_endian(bytes, 0), expected_magic = 0x800 + dims;
  if (magic != expected_magic) {
    throw FormatError(fmt::format("'{}': found magic number {:#010x}; expected {:#010x}; get the file again", path,
                                  magic, expected_magic));
  }
  __extension__ using Wide = unsigned __int128;
  Wide total = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    sizes.push_back(big_endian(bytes, 4 + 4 * d));
    total *= sizes.back();
  }
  if (total == 0 || total != bytes.size() - header) {
    throw FormatError(fmt::format("'{}': found {} bytes after the header; its sizes are {}; get the file again", path,
                                  bytes.size() - header, Json(sizes).dump()));
  }
  return bytes.substr(header);
}

}  // namespace

ImageSet read_cifar10(const std::string& dir) {
  const std::string expected = "data_batch_1.bin to data_batch_5.bin";
  check_folder(dir, expected);
  const fs::path inner = fs::path(dir) / "cifar-10-batches-bin";
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(fs::is_directory(inner) ? inner : fs::path(dir))) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("data_batch_") && name.ends_with(".bin")) paths.push_back(entry.path().string());
  }
  if (paths.empty()) {
    throw FormatError(fmt::format("'{}': found no data_batch_*.bin; expected {}; unpack cifar-10-binary.tar.gz there",
                                  dir, expected));
  }
  std::sort(paths.begin(), paths.end());
  ImageSet set{.channels = 3, .height = 32, .width = 32, .labels = {}, .pixels = {}};
  for (const auto& path : paths) append_cifar(set, path);
  return set;
}

ImageSet read_mnist(const std::string& dir) {
  check_folder(dir, "train-images-idx3-ubyte and train-labels-idx1-ubyte");
  std::vector<uint64_t> image_sizes, label_sizes;
  std::string pixels = read_idx(dir, "train-images", 3, image_sizes);
  const std::string labels = read_idx(dir, "train-labels", 1, label_sizes);
  if (image_sizes[0] != label_sizes[0]) {
    throw FormatError(fmt::format("'{}': found {} images and {} labels; expected as many; get both files again", dir,
                                  image_sizes[0], label_sizes[0]));
  }
  if (const auto most = static_cast<uint8_t>(
          *std::max_element(labels.begin(), labels.end(),
                            [](char a, char b) { return static_cast<uint8_t>(a) < static_cast<uint8_t>(b); }));
      most > 9) {
    throw FormatError(fmt::format("'{}': found label {}; expected 0 to 9; get the labels again", dir, most));
  }
  return {.channels = 1,
          .height = static_cast<int64_t>(image_sizes[1]),
          .width = static_cast<int64_t>(image_sizes[2]),
          .labels = {labels.begin(), labels.end()},
          .pixels = std::move(pixels)};
}

}  // namespace refrain::cli
