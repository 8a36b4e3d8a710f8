#include "offload/region_inputs.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <algorithm>

#include "intercept/key.h"
#include "intercept/storage_copy.h"
#include "tape/barrier.h"
#include "tape/lifetime.h"
#include "tape/pin.h"
#include "tape/slots.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

// Parameters are not parked: what computes their gradients keeps them resident anyway.
bool is_parameter(const at::Tensor& tensor) {
  const at::TensorBase& owner = tensor.is_view() ? tensor._base() : tensor;
  return owner.requires_grad() && owner.is_leaf();
}

bool can_park(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_inference() && has_plain_storage(tensor) && tensor.storage().nbytes() > 0 &&
         !is_borrowed(tensor.storage()) && !is_parameter(tensor);
}

// Marks the bytes as held in `offloaded` only.
void park(TapeLock& lock, Value* value) {
  value->residency = value->is_overwritten() ? Residency::kInStoreOnly : Residency::kInStore;
  lock.discard(std::move(value->held));
}

// A request for a writable pointer before an operator reads the input makes it another value.
void watch_pointers(Value* value) {
  if (value->is_in_store() && value->key) arm(value, value->key);
}

// Stores a tensor. @param region  that it is an input of; null if the tape records none.
// @returns  its value, retained; null if it is not stored.
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
    if (in_store && !value->is_in_store()) park(lock, value);
  }
  std::shared_ptr<Offloaded> bytes;
  try {
    work.add_input(value->nbytes);
    if (!in_store) bytes = store_or_keep(work, tensor.storage());
  } catch (...) {
    TapeLock lock;
    lock.release(value);
    throw;
  }
  TapeLock lock;
  if (bytes && !value->is_in_store()) {
    value->offloaded = std::move(bytes);
    park(lock, value);
  }
  if (region) watch_pointers(value);
  return value;
}

}  // namespace

/// Slot of a tensor that autograd saved: a parked value, or the tensor itself where it is not parked, or not yet. A
/// slot follows a write that bumps no version to the new bytes; a region's input has the bytes that the region read.
class Parked final : public Slot {
 public:
  Parked() : Slot(nullptr) {}
  ~Parked() override {
    if (!is_parked_) return;
    Tape::get().pending_slots.fetch_sub(1, std::memory_order_relaxed);
    TapeLock lock;
    if (input_) {
      lock.release(input_);
    } else {
      settle_writes(lock, ThreadState::get());
      detach(lock);
    }
  }

  void call_pack_hook(const at::Tensor& tensor) override {
    remember_version(tensor);
    may_park_ = can_park(tensor);  // tested here: `tensor_data` loses what makes it a parameter
    const BelowTape below;
    tensor_ = tensor.tensor_data();
  }

  /// Parks the tensor; without memory to recompute its bytes, or for the copy, it stays as it is. An error out of a
  /// hook would make autograd keep what a custom function saves forever.
  void store(RegionWork& work, bool is_input) {
    if (!may_park_ || version_bumped()) return;  // autograd refuses a new version
    try {
      store_resident(work, is_input);
    } catch (const c10::OutOfMemoryError&) {
    }
  }

  at::Tensor call_unpack_hook() override {
    c10::Storage bytes;
    std::shared_ptr<Offloaded> offloaded;
    {
      TapeLock lock;
      settle(lock, ThreadState::get());
      if (!is_parked_) {
        if (version_bumped()) throw_modified(counter, version);
        return tensor_;
      }
      const auto& parked = input_ ? *input_ : *value;
      if (!version_bumped()) bytes = resident(parked);
      offloaded = parked.offloaded;
    }
    const bool first_bytes = static_cast<bool>(bytes);
    if (!bytes && !offloaded) throw_modified(counter, version);
    if (!bytes) bytes = offloaded->fetch();
    auto tensor = meta_.build(bytes);
    if (first_bytes) tensor.unsafeGetTensorImpl()->set_version_counter(counter);
    return tensor;
  }

 private:
  void store_resident(RegionWork& work, bool is_input) {
    const auto tensor = tensor_;
    at::Tensor let_go;  // after the lock
    const Pinned bytes(tensor);
    auto* stored_value = stored(tensor, work, nullptr);
    if (!stored_value) return;
    TapeLock lock;
    if (stored_value->is_in_store()) {
      meta_.assign(tensor);
      watch_pointers(stored_value);
      if (is_input) {
        input_ = stored_value;
        retain(input_);
      } else {
        attach(lock, stored_value, false);
      }
      is_parked_ = true;
      let_go = std::move(tensor_);
      // the watch must see writes to its storage
      Tape::get().pending_slots.fetch_add(1, std::memory_order_relaxed);
      set_tape_included(true);
    }
    lock.release(stored_value);
  }

  at::Tensor tensor_;       ///< until it is parked; guarded by the tape's lock once others see this
  Value* input_ = nullptr;  ///< owned
  bool may_park_ = false;
  bool is_parked_ = false;
};

void store_parked(Parked& parked, RegionWork& work) { parked.store(work, false); }

namespace {

/// The hooks of a `Parked`, which `watch` may have to store yet.
class ParkedHooks final : public torch::autograd::SavedVariableHooks {
 public:
  ParkedHooks(RegionWork& work, ParkingWatch* watch) : work_(&work), watch_(watch) {}

  void call_pack_hook(const at::Tensor& tensor) override {
    auto& work = *std::exchange(work_, nullptr);
    parked_->call_pack_hook(tensor);
    if (watch_)
      watch_->packed(parked_, tensor);
    else
      parked_->store(work, true);
  }
  at::Tensor call_unpack_hook() override { return parked_->call_unpack_hook(); }

 private:
  RegionWork* work_;     ///< until it is packed
  ParkingWatch* watch_;  ///< likewise
  std::shared_ptr<Parked> parked_ = std::make_shared<Parked>();
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

std::unique_ptr<torch::autograd::SavedVariableHooks> parking_hooks(RegionWork& work, ParkingWatch* watch) {
  return std::make_unique<ParkedHooks>(work, watch);
}

}  // namespace refrain::tape
