#include "train/nccl.h"

#include <ATen/Context.h>

#ifdef REFRAIN_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace refrain {

#ifdef REFRAIN_NCCL
void add_nccl(c10d::ProcessGroup& group, const c10::intrusive_ptr<c10d::Store>& store,
              std::chrono::milliseconds timeout) {
  if (!at::hasCUDA()) return;
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  group.setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL,
                   c10::make_intrusive<c10d::ProcessGroupNCCL>(store, group.getRank(), group.getSize(), options));
}
#else
void add_nccl(c10d::ProcessGroup&, const c10::intrusive_ptr<c10d::Store>&, std::chrono::milliseconds) {}
#endif

}  // namespace refrain
