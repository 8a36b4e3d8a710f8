#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "apps/refrain/json_file.h"

namespace refrain::cli {

/// Writes all that the next step depends on: weights and buffers, optimizer, number of steps done, default generator.
/// To `path` at once or not at all. @param run  what must agree on resuming: model, sizes, optimizer.
void save_state(const std::string& path, const Json& run, const torch::nn::Module& module,
                const torch::optim::Optimizer& optimizer, int64_t step);

/// Reads it back and returns the number of steps done. `module` and `optimizer` are touched only once the file is known
/// to be whole and of the same `run`.
/// @throws FormatError if the file is missing, empty, cut short or not one that `save_state` wrote.
/// @throws InvalidArgument if it is of another run: names the field and both values.
int64_t load_state(const std::string& path, const Json& run, torch::nn::Module& module,
                   torch::optim::Optimizer& optimizer);

}  // namespace refrain::cli
