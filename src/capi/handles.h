#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "refrain/budget.h"
#include "refrain/c_api.h"
#include "refrain/checkpoint.h"
#include "refrain/memory_cap.h"
#include "refrain/offload.h"

// What handles that several files read point to. The others are beside their functions.
struct refrain_policy_t {
  refrain::Policy policy;
};
struct refrain_offload_store_t {
  refrain::OffloadStore store;
};

namespace refrain::capi {

/// The tensor of a `c10::TensorImpl*`, which the caller keeps alive meanwhile. @throws InvalidArgument for null.
at::Tensor tensor_of(void* impl, const char* function);
std::vector<at::Tensor> tensors_of(void* const* impls, size_t count, const char* function);

/// @throws InvalidArgument  for null or an unknown kind; also what `Budget` throws.
Budget budget_of(const refrain_budget_t* budget, const char* function);

/// Null gives the defaults.
MemoryCapOptions cap_options_of(const refrain_memory_cap_options_t* options);

}  // namespace refrain::capi
