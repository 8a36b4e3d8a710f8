#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace refrain::cli {

/// Labelled images, one byte a channel and pixel, each [channels, height, width] in row-major order.
struct ImageSet {
  int64_t channels = 0, height = 0, width = 0;
  std::vector<uint8_t> labels;
  std::string pixels;
};

/// All `data_batch_*.bin` in `dir` or `dir`/cifar-10-batches-bin: records of one label and 3 x 32 x 32 bytes.
/// @throws FormatError naming the file, its size, and what a whole number of records would be.
ImageSet read_cifar10(const std::string& dir);

/// `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` in `dir` (or with a dot before idx), not compressed.
/// @throws FormatError on a wrong magic number, a wrong size, or counts that differ.
ImageSet read_mnist(const std::string& dir);

}  // namespace refrain::cli
