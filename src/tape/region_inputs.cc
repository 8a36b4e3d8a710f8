#include "tape/region_inputs.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <algorithm>

#include "tape/evict.h"
#include "tape/key.h"
#include "tape/slots.h"
#include "tape/storage_copy.h"

namespace refrain::tape {
namespace {

// Whoever makes a gradient for it keeps it in memory anyway.
bool is_parameter(const at::Tensor& tensor) {
  const at::TensorBase& owner = tensor.is_view() ? tensor._base() : tensor;
  return owner.requires_grad() && owner.is_leaf();
}

bool can_park(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_inference() && has_plain_storage(tensor) && tensor.storage().nbytes() > 0 &&
         !is_borrowed(tensor.storage()) && !is_parameter(tensor);
}

// From now on its bytes are in `offloaded`.
void park(TapeLock& lock, Value* value) {
  value->parked = true;
  lock.discard(std::move(value->held));
}

// @param region  that it is an input of; null if the tape records none.
// @returns  its value, retained; null if it is left alone.
Value* stored(const at::Tensor& tensor, RegionWork& work, const Region* region) {
  Value* value = nullptr;
  bool in_store = false;
  {
    TapeLock lock;
    settle(lock, ThreadState::get());
    value = value_of(lock, tensor);
    const bool own = region && value->region && value->region->top == region->top;
    if (own || value->unknown || value->discard || value->private_copy) return nullptr;
    if (region && std::find(region->inputs.begin(), region->inputs.end(), value) != region->inputs.end())
      return nullptr;
    retain(value);
    in_store = static_cast<bool>(value->offloaded);
    if (in_store && !value->parked) park(lock, value);
  }
  std::shared_ptr<Offloaded> bytes;
  try {
    work.add_input(value->nbytes);
    if (!in_store) bytes = work.store(tensor.storage());
  } catch (...) {
    TapeLock lock;
    lock.release(value);
    throw;
  }
  TapeLock lock;
  if (bytes && !value->parked) {
    value->offloaded = std::move(bytes);
    park(lock, value);
  }
  return value;
}

/// What autograd keeps of a tensor: a parked value, or the tensor itself where it is left alone.
class ParkedInput final : public torch::autograd::SavedVariableHooks {
 public:
  explicit ParkedInput(RegionWork& work) : work_(&work) {}
  ~ParkedInput() override {
    if (!value_) return;
    Tape::get().pending_slots.fetch_sub(1, std::memory_order_relaxed);
    TapeLock lock;
    lock.release(value_);
  }

  void call_pack_hook(const at::Tensor& tensor) override {
    auto& work = *std::exchange(work_, nullptr);
    if (!tensor.is_inference()) {
      counter_ = tensor.unsafeGetTensorImpl()->version_counter();
      version_ = counter_.current_version();
    }
    const Pinned bytes(tensor);
    auto* value = can_park(tensor) ? stored(tensor, work, nullptr) : nullptr;
    if (value && value->parked) {
      value_ = value;
      meta_.assign(tensor);
      // the watch must see what is written to its storage
      Tape::get().pending_slots.fetch_add(1, std::memory_order_relaxed);
      set_tape_included(true);
      return;
    }
    if (value) {
      TapeLock lock;
      lock.release(value);
    }
    const UnseenScope below;
    kept_ = tensor.tensor_data();
  }

  at::Tensor call_unpack_hook() override {
    if (kept_.defined()) {
      if (version_bumped()) throw_modified(counter_, version_);
      return kept_;
    }
    c10::Storage bytes;
    std::shared_ptr<Offloaded> offloaded;
    {
      TapeLock lock;
      settle(lock, ThreadState::get());
      if (!version_bumped()) bytes = resident(*value_);
      offloaded = value_->offloaded;
    }
    const bool first_bytes = static_cast<bool>(bytes);
    if (!bytes) bytes = offloaded->fetch();
    auto tensor = meta_.build(bytes);
    if (first_bytes) tensor.unsafeGetTensorImpl()->set_version_counter(counter_);
    return tensor;
  }

 private:
  bool version_bumped() const { return counter_.enabled() && counter_.current_version() != version_; }

  RegionWork* work_;  ///< until it is packed
  Value* value_ = nullptr;  ///< owned
  TensorMeta meta_;
  c10::VariableVersion counter_;
  uint32_t version_ = 0;
  at::Tensor kept_;
};

}  // namespace

void add_input(Region* region, const at::Tensor& tensor) {
  const Pinned bytes(tensor);
  if (!can_park(tensor)) return;
  if (auto* value = stored(tensor, *region->work, region)) region->inputs.push_back(value);
}

ParkingScope::ParkingScope(RegionWork* work, const at::Tensor& tensor) : work_(nullptr) {
  auto& thread = ThreadState::get();
  if (!work || thread.region || thread.saver) return;
  const Pinned bytes(tensor);
  if (!can_park(tensor)) return;
  work_ = work;
  thread.saver = this;
}

ParkingScope::~ParkingScope() {
  if (work_) ThreadState::get().saver = nullptr;
}

std::unique_ptr<torch::autograd::SavedVariableHooks> ParkingScope::hooks() { return parking_hooks(*work_); }

std::unique_ptr<torch::autograd::SavedVariableHooks> parking_hooks(RegionWork& work) {
  return std::make_unique<ParkedInput>(work);
}

}  // namespace refrain::tape
