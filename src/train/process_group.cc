#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "refrain/distributed.h"
#include "train/errors.h"

namespace refrain {
namespace {

/// Runs a collective to its end.
template <typename Start>
void finish(const ProcessGroup& group, const char* name, const Start& start) {
  try {
    const at::NoGradGuard no_grad;
    start(*group.c10d())->wait();
  } catch (const std::exception& error) {
    throw lost_rank(std::string("[refrain::ProcessGroup] ") + name, group.rank(), group.size(), error);
  }
}

}  // namespace

ProcessGroup::ProcessGroup(const c10::intrusive_ptr<c10d::ProcessGroup>& group)
    : group_(std::make_shared<const c10::intrusive_ptr<c10d::ProcessGroup>>(group)) {
  if (!group) throw InvalidArgument("[refrain::ProcessGroup] found a null pointer, expected a group of LibTorch's.");
}

int64_t ProcessGroup::rank() const { return (*group_)->getRank(); }
int64_t ProcessGroup::size() const { return (*group_)->getSize(); }

void ProcessGroup::barrier() const {
  finish(*this, "barrier", [](auto& group) { return group.barrier(); });
}

void ProcessGroup::all_reduce(at::Tensor tensor) const {
  std::vector<at::Tensor> tensors{tensor.detach()};
  finish(*this, "all_reduce", [&](auto& group) { return group.allreduce(tensors); });
}

void ProcessGroup::broadcast(at::Tensor tensor, int64_t root) const {
  if (root < 0 || root >= size()) {
    throw InvalidArgument(
        fmt::format("[refrain::ProcessGroup] broadcast from rank {}: expected 0 to {}.", root, size() - 1));
  }
  std::vector<at::Tensor> tensors{tensor.detach()};
  finish(*this, "broadcast", [&](auto& group) {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return group.broadcast(tensors, options);
  });
}

std::vector<at::Tensor> ProcessGroup::all_gather(const at::Tensor& tensor) const {
  std::vector<at::Tensor> mine{tensor.detach().contiguous()};
  std::vector<std::vector<at::Tensor>> all(1);
  for (int64_t i = 0; i < size(); ++i) all[0].push_back(at::empty_like(mine[0]));
  finish(*this, "all_gather", [&](auto& group) { return group.allgather(all, mine); });
  return all[0];
}

void ProcessGroup::all_gather_into(at::Tensor whole, at::Tensor part) const {
  finish(*this, "all_gather_into",
         [&](auto& group) { return group.getBackend(whole.device().type())->_allgather_base(whole, part); });
}

std::vector<std::string> ProcessGroup::all_gather(const std::string& text) const {
  const auto lengths = all_gather(at::zeros({1}, at::kLong).fill_(static_cast<int64_t>(text.size())));
  int64_t longest = 1;
  for (const auto& length : lengths) longest = std::max(longest, length.item<int64_t>());
  auto bytes = at::zeros({longest}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr<uint8_t>(), text.data(), text.size());
  const auto gathered = all_gather(bytes);
  std::vector<std::string> all;
  for (size_t i = 0; i < gathered.size(); ++i) {
    const auto* const begin = reinterpret_cast<const char*>(gathered[i].const_data_ptr<uint8_t>());
    all.emplace_back(begin, static_cast<size_t>(lengths[i].item<int64_t>()));
  }
  return all;
}

}  // namespace refrain
