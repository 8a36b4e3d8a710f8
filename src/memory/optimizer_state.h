#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "refrain/bytes.h"

namespace torch::optim {
class Optimizer;
}

/// State that LibTorch's own optimizers (SGD, Adam, AdamW, RMSprop, Adagrad) hold for each parameter.
namespace refrain {

/// Lists the present tensors, each under the name of its parameter and field: "0.weight exp_avg".
/// @param names  of parameters; the state of one that is not in it has the field's name alone.
std::vector<std::pair<std::string, at::Tensor>> optimizer_state(
    const torch::optim::Optimizer& optimizer, const std::vector<std::pair<std::string, at::Tensor>>& names);

/// Computes the bytes of the state once every parameter has been stepped; none for an optimizer of another class.
std::optional<Bytes> expected_state_bytes(const torch::optim::Optimizer& optimizer);

}  // namespace refrain
