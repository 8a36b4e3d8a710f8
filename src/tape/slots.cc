#include "tape/slots.h"

#include <fmt/format.h>

#include "refrain/torch_error.h"

namespace refrain::tape {

void throw_modified(const c10::VariableVersion& counter, uint32_t version) {
  throw CheckpointError(fmt::format(
      "[refrain::checkpoint] a saved tensor was modified in place: it is at version {}, expected version {}. "
      "Modify a clone, or move the change after backward.",
      counter.current_version(), version));
}

void Slot::attach(TapeLock& lock, Value* to, bool holding) {
  value = to;
  retain(to);
  in_value = {nullptr, to->slots};
  if (to->slots) to->slots->in_value.prev = this;
  to->slots = this;
  holds = holding;
  if (holding) hold(lock, to);
}

void Slot::detach(TapeLock& lock) {
  (in_value.prev ? in_value.prev->in_value.next : value->slots) = in_value.next;
  if (in_value.next) in_value.next->in_value.prev = in_value.prev;
  if (holds) unhold(lock, value);
  touch(lock, value);
  lock.release(std::exchange(value, nullptr));
}

void Slot::remember_version(const at::Tensor& tensor) {
  if (tensor.is_inference()) return;
  counter = tensor.unsafeGetTensorImpl()->version_counter();
  version = counter.current_version();
}

}  // namespace refrain::tape
