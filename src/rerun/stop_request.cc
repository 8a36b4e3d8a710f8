#include "rerun/stop_request.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>

#include "intercept/covers_storage.h"
#include "intercept/for_each_tensor.h"
#include "intercept/saving.h"
#include "intercept/tensor_meta.h"
#include "intercept/throw_path.h"

namespace refrain::tape {
namespace {

using WeakStorages = std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>>;

bool contains(const WeakStorages& storages, const c10::StorageImpl* storage) {
  return std::any_of(storages.begin(), storages.end(),
                     [&](const auto& known) { return known._unsafe_get_target() == storage; });
}

void forget(WeakStorages& storages, const c10::StorageImpl* storage) {
  std::erase_if(storages, [&](const auto& known) { return known._unsafe_get_target() == storage; });
}

}  // namespace

void StopRequest::saved(const at::Tensor& tensor, bool argument) {
  if (!has_plain_storage(tensor)) return;
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (contains(fresh, storage)) raw.push_back({tensor.storage().getWeakStorageImpl(), Version(tensor)});
  const auto newest = at::sequence_number::peek();
  if (std::exchange(node, newest) != newest) arguments.clear();
  if (argument) arguments.push_back(tensor.storage().getWeakStorageImpl());
}

void StopRequest::before(const OpTraits& op, const torch::jit::Stack& stack) {
  if (torch::autograd::get_current_graph_task_id() != graph_task) return;
  const auto* args = stack.data() + (stack.size() - op.num_args);
  bool writes_saved = false;
  if (!op.writes.empty() && !(fresh.empty() && arguments.empty() && !due)) {
    for_each_tensor(args, op.num_args, [&](const at::Tensor& tensor, size_t position, int32_t) {
      if (!has_plain_storage(tensor) || !write_trait(op, position, args)) return;
      const auto* storage = tensor.storage().unsafeGetStorageImpl();
      const bool fills_argument = contains(arguments, storage);
      const auto is_same = [&](const Raw& known) { return known.storage._unsafe_get_target() == storage; };
      const bool fills_raw = std::any_of(raw.begin(), raw.end(), [&](const Raw& known) {
        return is_same(known) && !known.version.moves_with(tensor);
      });
      writes_saved |= fills_argument || fills_raw;
      forget(fresh, storage);  // filled in parts, it is whole when it is saved
      if (!fills_raw || covers_storage(tensor)) std::erase_if(raw, is_same);
      if (due && overwrites && !fills_argument) overwrites(tensor);
    });
  }
  if (!due) return;
  if (!arguments.empty() && !writes_saved && may_be_helper(op, stack)) return;
  arguments.clear();
  writing = writes_saved;
  if (writes_saved || !raw.empty()) return;
  if (can_throw_to(frame)) {
    due = false;
    throw EarlyStop();
  }
  if (const auto call = std::exchange(runs_on, nullptr)) call();
}

void StopRequest::after(const OpTraits& op, const torch::jit::Stack& stack) {
  writing = false;
  if (!op.uninitialized) return;
  for_each_tensor(stack.data() + (stack.size() - op.num_returns), op.num_returns,
                  [&](const at::Tensor& tensor, size_t, int32_t) {
                    if (has_plain_storage(tensor)) fresh.push_back(tensor.storage().getWeakStorageImpl());
                  });
}

}  // namespace refrain::tape
