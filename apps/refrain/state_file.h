#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

#include "apps/refrain/json_file.h"
#include "refrain/amp.h"

namespace refrain::cli {

/// Where a run is, beside its model, optimizer and scaler.
struct Position {
  int64_t step = 0;                            ///< steps done; which batches come next follows from it
  double lr = 0.0;                             ///< before the schedule
  std::vector<torch::Tensor> generators = {};  ///< states of the default generators, by rank
};

/// Writes all that the next step depends on. To `path` at once or not at all.
/// @param run  what must agree on resuming: model, sizes, optimizer ...
void save_state(const std::string& path, const Json& run, const torch::nn::Module& module,
                const torch::optim::Optimizer& optimizer, const GradScaler& scaler, const Position& position);

/// Reads it back. Module, optimizer and scaler are touched only once the file is known to be whole and of the same
/// `run`.
/// @throws FormatError if the file is missing, empty, cut short or not one that `save_state` wrote.
/// @throws InvalidArgument if it is of another run: names the field and both values.
Position load_state(const std::string& path, const Json& run, torch::nn::Module& module,
                    torch::optim::Optimizer& optimizer, GradScaler& scaler);

}  // namespace refrain::cli
