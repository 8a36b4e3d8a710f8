#pragma once

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "refrain/data_parallel.h"

namespace refrain {

/// Describes options, parameters and buffers, a line each, on which ranks must agree.
std::string describe(const torch::nn::Module& module, const DataParallelOptions& options);

/// Finds the first line in which ranks differ, and lists each rank's; empty if there is none.
/// @param descriptions  by rank.
std::string first_difference(const std::vector<std::string>& descriptions);

}  // namespace refrain
