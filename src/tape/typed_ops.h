#pragma once

#include <ATen/core/operator_name.h>

#include <unordered_set>

namespace refrain::tape {

/// Registers the kernels for the operators of `REFRAIN_TYPED_OPS` on the tape's key, but for `except`. @throws c10::Error.
void add_typed_ops(const std::unordered_set<c10::OperatorName>& except);
bool is_typed_op(const c10::OperatorName& name);

}  // namespace refrain::tape
