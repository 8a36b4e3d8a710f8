#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "models/zoo.h"

namespace refrain::cli {

/// Which examples make up a batch.
enum class Order {
  kRandom,   ///< any, each time drawn from all
  kByEpoch,  ///< the next of a random order of all; then of another one
};

/// Batches by number: a run that is resumed at batch k sees what the uninterrupted run saw. Bytes of the data set
/// are held outside LibTorch's allocator and do not count against a memory limit; batches do.
class DataSource {
 public:
  virtual ~DataSource() = default;
  virtual models::Batch batch(int64_t number) = 0;
  /// In a pass over the data; 0 if there is no such thing. Of a text: the windows of `seq` tokens side by side.
  virtual int64_t examples() const = 0;
};

/// @param spec  `text:FILE` (any bytes), `cifar10:DIR` (data_batch_*.bin), `mnist:DIR` (train-*-ubyte), or `synthetic`
///              (four random batches in turn, so that the loss can fall). What a batch looks like follows from
///              `model.synthetic_batch`: images are scaled to its shape; labels become classes, one-hot rows or masks.
/// @throws InvalidArgument on an unknown kind or one that does not suit the model; FormatError on a bad file.
std::unique_ptr<DataSource> open_data(const std::string& spec, models::TrainableModel& model, uint64_t seed,
                                      Order order = Order::kRandom);

}  // namespace refrain::cli
