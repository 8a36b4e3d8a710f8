#include "refrain/opaque_scope.h"

#include <optional>

#include "intercept/key.h"
#include "intercept/tensor_meta.h"
#include "refrain/memory_cap.h"
#include "tape/barrier.h"
#include "tape/cap.h"
#include "tape/tape.h"

namespace refrain {
namespace {

using namespace tape;

// Only these are pinned, and so kept alive: compiled code lets go of the rest while it runs.
void add_evictable(const std::vector<at::Tensor>& some, std::vector<at::Tensor>& found) {
  if (!is_capped()) return;
  TapeLock lock;
  for (const auto& tensor : some) {
    if (!tensor.defined() || !has_plain_storage(tensor)) continue;
    const auto* value = find_value(lock, tensor.storage().unsafeGetStorageImpl());
    if (value && value->region && value->region->cap) found.push_back(tensor);
  }
}

}  // namespace

struct OpaqueScope::State {
  explicit State(std::vector<at::Tensor> evictable) : pins(std::move(evictable)) {}
  PinScope pins;
  std::optional<UnseenScope> unseen;
};

OpaqueScope::OpaqueScope(const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes) {
  std::vector<at::Tensor> evictable;
  add_evictable(reads, evictable);
  add_evictable(writes, evictable);
  state_ = std::make_unique<State>(std::move(evictable));
  for (const auto& tensor : writes)
    if (tensor.defined() && has_plain_storage(tensor)) tape::about_to_write(tensor.storage().unsafeGetStorageImpl());
  state_->unseen.emplace();
}

OpaqueScope::~OpaqueScope() = default;

}  // namespace refrain
