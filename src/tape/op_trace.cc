#include "tape/op_trace.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "tape/value.h"

namespace refrain::tape {
namespace {

template <typename Visit>
void for_each_tensor(const torch::jit::Stack& stack, size_t count, Visit&& visit) {
  for (size_t i = stack.size() - count; i < stack.size(); ++i) {
    if (stack[i].isTensor()) {
      visit(stack[i].toTensor());
    } else if (stack[i].isTensorList()) {
      for (const at::Tensor& tensor : stack[i].toTensorVector()) visit(tensor);
    }
  }
}

}  // namespace

std::string describe(at::ScalarType dtype, at::IntArrayRef sizes, at::Device device) {
  auto text = fmt::format("{}[{}]", c10::toString(dtype), fmt::join(sizes.begin(), sizes.end(), ", "));
  if (!device.is_cpu()) text += " on " + device.str();
  return text;
}

void OpTrace::note(const OpTraits& op, const torch::jit::Stack& stack) {
  if (skip_casts_ && op.cast) return;
  auto& call = calls_.emplace_back(Call{&op, 0, {}});
  std::vector<std::string> tensors;
  const auto mix = [&](uint64_t word) { call.arguments = (call.arguments ^ word) * 0x9e3779b97f4a7c15U + (word >> 7); };
  for_each_tensor(stack, op.num_args, [&](const at::Tensor& tensor) {
    if (!tensor.defined()) {
      mix(1);
      if (texts_) tensors.emplace_back("-");
      return;
    }
    note_read(tensor, false);
    mix(static_cast<uint64_t>(tensor.scalar_type()) + 2);
    for (const auto size : tensor.sizes()) mix(static_cast<uint64_t>(size) + 3);
    if (texts_) tensors.push_back(describe(tensor.scalar_type(), tensor.sizes(), tensor.device()));
  });
  for (const auto& write : op.writes) {
    const auto& argument = stack[stack.size() - op.num_args + write.arg];
    if (argument.isTensor()) note_read(argument.toTensor(), true);
    if (argument.isTensorList())
      for (const at::Tensor& tensor : argument.toTensorVector()) note_read(tensor, true);
  }
  if (texts_) call.text = fmt::format("{}({})", op.name(), fmt::join(tensors, ", "));
}

void OpTrace::note_read(const at::Tensor& tensor, bool writes) {
  if (!tensor.defined() || tensor.is_inference() || !has_plain_storage(tensor)) return;
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  auto found = reads_.find(storage);
  if (found == reads_.end()) {
    const auto& counter = tensor.unsafeGetTensorImpl()->version_counter();
    found = reads_.emplace(storage, Read{tensor.storage().getWeakStorageImpl(), counter, counter.current_version(), false,
                                         calls_.size() - 1}).first;
  }
  found->second.written |= writes;
}

std::string OpTrace::changed_since(const OpTrace& other) const {
  for (const auto& [storage, theirs] : other.reads_) {
    const auto mine = reads_.find(storage);
    if (mine == reads_.end() || mine->second.written) continue;
    const auto now = mine->second.counter.current_version();
    if (now != mine->second.version)
      return fmt::format("an argument of operator {}, `{}`, which was read from outside, was changed since: it is at version "
                         "{}, expected version {}", mine->second.call, name(calls_[mine->second.call]), now,
                         mine->second.version);
  }
  return {};
}

std::string OpTrace::difference(const OpTrace& other, bool prefix) const {
  const size_t common = std::min(calls_.size(), other.calls_.size());
  for (size_t i = 0; i < common; ++i) {
    const auto &mine = calls_[i], &theirs = other.calls_[i];
    if (mine.op != theirs.op)
      return fmt::format("operator {} was `{}` in forward and `{}` when called again", i, name(mine), name(theirs));
    if (mine.arguments != theirs.arguments)
      return fmt::format("operator {}, `{}`, had tensors of other sizes or dtypes when called again{}", i, name(mine),
                         theirs.text.empty() ? std::string() : fmt::format(": `{}`", theirs.text));
  }
  if (other.calls_.size() > common || (!prefix && calls_.size() > common))
    return fmt::format("{} operators ran in forward, {} when called again", calls_.size(), other.calls_.size());
  return {};
}

std::string OpTrace::text() const {
  std::string lines;
  for (size_t i = 0; i < calls_.size(); ++i) lines += fmt::format("  {:4} {}\n", i, name(calls_[i]));
  return lines;
}

}  // namespace refrain::tape
