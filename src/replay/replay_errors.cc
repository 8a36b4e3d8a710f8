#include "replay/replay_errors.h"

#include <fmt/format.h>

#include "refrain/torch_error.h"
#include "tape/tape.h"

namespace refrain::tape {
namespace {

bool is_cap(const Region* region) { return region && region->cap; }

}  // namespace

const char* recorded_by(const Region* region) { return is_cap(region) ? "refrain::MemoryCap" : "refrain::checkpoint"; }

void throw_changed(const Op& op, const ArgRef& ref) {
  const c10::IntArrayRef sizes(ref.meta.sizes_and_strides.sizes_data(), ref.meta.sizes_and_strides.size());
  const bool cap = is_cap(op.region);
  throw CheckpointError(fmt::format(
      "[{}] {} `{}`, but its argument {} (a {} tensor of size {}, {}) was changed since {}: it is at version {}, expected version {}. {}, or pass a clone.",
      recorded_by(op.region), cap ? "recomputing an evicted tensor must replay" : "backward must replay",
      op.traits->name(), ref.arg, c10::toString(ref.meta.dtype.toScalarType()), c10::str(sizes),
      cap ? "which no operator under the cap or budget made" : "read from outside the region",
      cap ? "then, unseen" : "forward", ref.counter.current_version(), ref.version,
      cap ? "Change it by operators of a thread under the cap" : "Move the change after backward"));
}

void throw_refilled(const Op& op, const ArgRef& ref) {
  const c10::IntArrayRef sizes(ref.meta.sizes_and_strides.sizes_data(), ref.meta.sizes_and_strides.size());
  throw CheckpointError(fmt::format(
      "[refrain::checkpoint] `{}` must be replayed, but its argument {} (a {} tensor of size {}, read from outside) "
      "holds other bytes than in forward: it was refilled through a pointer, and there is no copy. Call `data_ptr()` "
      "before each write, so that the write is seen and the old bytes are copied; if you did, raise the bound of "
      "`set_leaf_write_policy`. Or pass a clone, or move the change after backward.",
      op.traits->name(), ref.arg, c10::toString(ref.meta.dtype.toScalarType()), c10::str(sizes)));
}

void throw_freed(const Op& op, const ArgRef& ref, size_t nbytes) {
  throw CheckpointError(fmt::format(
      "[refrain::checkpoint] `{}` must be replayed, but the storage of its argument {} was resized since forward: it "
      "has {} of {} bytes. FSDP frees parameters after their module's forward and gathers them before its backward: open "
      "the region inside of each module that `fully_shard` was called on, or set `reshard_after_forward=False`.",
      op.traits->name(), ref.arg, nbytes, ref.value->nbytes));
}

void throw_lost(const Value& value, const Op* op) {
  const auto* region = op ? op->region : value.region;
  const bool cap = is_cap(region);
  throw CheckpointError(fmt::format(
      "[{}] {} needs {} bytes that {}{} and have been overwritten since without a copy. Move the change after backward, pass a clone, or raise the bound "
      "of `set_leaf_write_policy`.",
      recorded_by(region), cap ? "recomputing an evicted tensor" : "backward", value.nbytes,
      cap ? "no operator under the cap or budget made" : "were read from outside the region",
      op ? fmt::format("{}`{}`", cap ? ", were read by " : " by ", op->traits->name()) : std::string()));
}

}  // namespace refrain::tape
