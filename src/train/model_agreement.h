#pragma once

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "refrain/data_parallel.h"

namespace refrain {

/// Options, parameters and buffers, a line each, as ranks must agree on them.
std::string describe(const torch::nn::Module& module, const DataParallelOptions& options);

/// The first line in which ranks differ, and who has what there; empty if there is none.
/// @param descriptions  by rank.
std::string first_difference(const std::vector<std::string>& descriptions);

}  // namespace refrain
