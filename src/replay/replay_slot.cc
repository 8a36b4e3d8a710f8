#include "replay/replay_slot.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/graph_task.h>

#include "intercept/storage_copy.h"
#include "refrain/torch_error.h"
#include "replay/refill.h"
#include "tape/barrier.h"
#include "tape/region_end.h"
#include "tape/slots.h"
#include "tape/thread_state.h"

namespace refrain::tape {
namespace {

/// A `Slot` whose bytes a replay recomputes.
class ReplaySlot final : public Slot {
 public:
  /// @param innermost of this thread's open regions; the slot joins it when it packs. Null outside regions: it joins that
  ///        of a discarded output, and keeps any other tensor as it is.
  explicit ReplaySlot(Region* innermost) : Slot(innermost) {}
  ~ReplaySlot() override;
  void call_pack_hook(const at::Tensor& tensor) override;
  at::Tensor call_unpack_hook() override;

 private:
  void join(TapeLock& lock);
  /// Whether `filled` is unchanged since the pass, by its version: backward may write into what it has unpacked, on any
  /// thread.
  bool filled_is_whole() const { return !counter.enabled() || counter.current_version() == filled_at; }

  bool joined_ = false;  ///< its region knows it
};

// Stays alive until the slot joins it: `tensor` holds its value.
Region* region_of_discarded(const at::Tensor& tensor, ThreadState& thread) {
  if (!has_plain_storage(tensor)) return nullptr;
  TapeLock lock;
  settle_writes(lock, thread);
  const auto* value = find_value(lock, tensor.storage().unsafeGetStorageImpl());
  return value && value->discard && value->producer ? value->region : nullptr;
}

void ReplaySlot::join(TapeLock& lock) {
  joined_ = true;
  ++region->refs;
  in_region.next = region->slots;
  if (region->slots) region->slots->in_region.prev = this;
  region->slots = this;
  slot_added(lock, region);
}

ReplaySlot::~ReplaySlot() {
  if (!joined_) return;
  TapeLock lock;
  auto& thread = ThreadState::get();
  settle_writes(lock, thread);
  if (value) detach(lock);
  lock.discard(std::move(filled));
  (in_region.prev ? in_region.prev->in_region.next : region->slots) = in_region.next;
  if (in_region.next) in_region.next->in_region.prev = in_region.prev;
  slot_removed(lock, region);
  lock.release(region);
}

void ReplaySlot::call_pack_hook(const at::Tensor& tensor) {
  if (auto* observer = ThreadState::get().observer) observer->packed(this, tensor);
  remember_version(tensor);
  auto& thread = ThreadState::get();
  if (!region) region = region_of_discarded(tensor, thread);
  if (!region || !has_plain_storage(tensor) || is_borrowed(tensor.storage())) {
    kept_ = without_history(tensor);
    // writes by backward must show in other tensors that autograd saved of the same memory
    if (counter.enabled()) kept_.unsafeGetTensorImpl()->set_version_counter(counter);
    if (!region) return;
    TapeLock lock;
    return join(lock);
  }
  meta_.assign(tensor);
  TapeLock lock;
  join(lock);
  settle_writes(lock, thread);
  auto* known = value_of(lock, tensor);
  attach(lock, known, needs_hold(lock, known, region));
  if (known->unknown) {
    retain(known);
    hold(lock, known);  // its tensor may die before it is decided
    thread.unknown_slots.push_back(known);
  }
}

at::Tensor ReplaySlot::call_unpack_hook() {
  if (kept_.defined()) {
    if (version_bumped()) throw_modified(counter, version);
    return kept_;
  }
  TapeLock lock;
  settle(lock, ThreadState::get());
  if (value->is_leaf() && version_bumped()) {
    const auto sizes = c10::IntArrayRef(meta_.sizes_and_strides.sizes_data(), meta_.sizes_and_strides.size()).vec();
    throw CheckpointError(fmt::format(
        "[refrain::checkpoint] one of the variables needed for gradient computation has been modified by an inplace "
        "operation: a {} tensor of size {} is at version {}, expected version {}. It was read from outside the "
        "checkpointed function; modify a clone, or move the change after backward.",
        c10::toString(meta_.dtype.toScalarType()), c10::str(sizes), counter.current_version(), version));
  }
  const int32_t task = torch::autograd::get_current_graph_task_id();
  auto bytes = std::move(filled);
  const bool written = bytes && value->key == bytes.unsafeGetStorageImpl() && value->version_moved();
  if (bytes && (written || !filled_is_whole())) lock.discard(std::move(bytes));
  if (!bytes) bytes = value->is_evicted() ? value->held : resident(*value);  // the operator that reads it recomputes it
  if (!bytes) {
    refill(lock, *this);
    bytes = std::move(filled);
  }
  filled = {};
  if (task >= 0) read_task = task;
  auto tensor = meta_.build(bytes);
  // A backward with `create_graph` that saves it a second time, or a custom function's that writes it, gets the tensor
  // that was saved, and whoever saved it too sees its version. Replayed for slots whose tensor was overwritten, it is
  // another, which they share.
  const bool same_bytes = value->key == bytes.unsafeGetStorageImpl();
  if (value->is_leaf() && value->private_copy) return tensor;
  const bool is_another = version_bumped();
  if (!is_another)
    tensor.unsafeGetTensorImpl()->set_version_counter(counter);
  else if (same_bytes && value->counter.enabled())
    tensor.unsafeGetTensorImpl()->set_version_counter(value->counter);
  if (!same_bytes) return tensor;
  if (counter.enabled() && !value->counter.enabled()) {
    value->counter = tensor.unsafeGetTensorImpl()->version_counter();
    value->version = (is_another ? 0 : version) - value->metadata_bumps;
  }
  if (is_another) return tensor;
  // Only then can it be unpacked a second time after a write through a pointer.
  if (task >= 0 && torch::autograd::get_current_graph_task_keep_graph()) arm(value, value->key);
  return tensor;
}

std::unique_ptr<torch::autograd::SavedVariableHooks> make_slot(Region* region) {
  return std::make_unique<ReplaySlot>(region);
}

}  // namespace

void use_replay_slots() { Tape::get().saved_hooks.store(&make_slot, std::memory_order_relaxed); }

}  // namespace refrain::tape
