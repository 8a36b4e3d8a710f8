#pragma once

#include <ATen/core/operator_name.h>
#include <torch/library.h>

#include <unordered_set>

namespace refrain::tape {

/// Registers the kernels for the operators of `REFRAIN_TYPED_OPS` in `library`, of the tape's key, but for `except`.
/// @throws c10::Error.
void add_typed_ops(torch::Library& library, const std::unordered_set<c10::OperatorName>& except);
bool is_typed_op(const c10::OperatorName& name);

}  // namespace refrain::tape
