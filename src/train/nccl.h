#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <chrono>

namespace refrain {

/// Adds NCCL to `group` for tensors on CUDA devices; does nothing where build or machine have none.
void add_nccl(c10d::ProcessGroup& group, const c10::intrusive_ptr<c10d::Store>& store,
              std::chrono::milliseconds timeout);

}  // namespace refrain
