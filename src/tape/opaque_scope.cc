#include "refrain/opaque_scope.h"

#include "intercept/key.h"
#include "intercept/tensor_meta.h"
#include "tape/pin.h"
#include "tape/tape.h"

namespace refrain {
namespace {

using namespace tape;

bool is_evictable(const at::Tensor& tensor) {
  if (!is_capped()) return false;
  TapeLock lock;
  const auto* value = find_value(lock, tensor.storage().unsafeGetStorageImpl());
  return value && value->region && value->region->cap;
}

}  // namespace

struct OpaqueScope::State {
  // Only what a cap may evict is kept alive: compiled code lets go of the rest while it runs.
  void pin(std::vector<at::Tensor>&& some) {
    for (auto& tensor : some) {
      if (!tensor.defined() || !has_plain_storage(tensor) || !is_evictable(tensor)) continue;
      tensors.push_back(std::make_unique<at::Tensor>(std::move(tensor)));
      pins.push_back(std::make_unique<Pinned>(*tensors.back()));
    }
  }

  std::vector<std::unique_ptr<at::Tensor>> tensors;
  std::vector<std::unique_ptr<Pinned>> pins;
  std::unique_ptr<UnseenScope> unseen;
};

OpaqueScope::OpaqueScope(std::vector<at::Tensor> reads, const std::vector<at::Tensor>& writes)
    : state_(std::make_unique<State>()) {
  state_->pin(std::move(reads));
  state_->pin(std::vector<at::Tensor>(writes));
  // a request for a writable pointer is what the tape takes for a write
  for (const auto& tensor : writes)
    if (tensor.defined() && has_plain_storage(tensor)) (void)tensor.storage().mutable_data();
  state_->unseen = std::make_unique<UnseenScope>();
}

OpaqueScope::~OpaqueScope() = default;

}  // namespace refrain
