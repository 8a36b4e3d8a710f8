#include "intercept/op_traits.h"
#include "refrain/error.h"
#include "tape/lifetime.h"
#include "tape/slots.h"
#include "tape/tape.h"
#include "tape/thread_state.h"

namespace refrain {

TapeStats tape_stats() {
  while (tape::has_gone()) const tape::TapeLock settling;
  tape::TapeLock lock;
  return lock.tape().stats;
}

void reset_tape_counters() {
  tape::TapeLock lock;
  auto& stats = lock.tape().stats;
  stats.recorded_ops = stats.replayed_ops = stats.replay_passes = stats.reruns = stats.leaf_copies = 0;
  stats.recorded_ms = stats.replayed_forward_ms = stats.replay_ms = 0;
}

bool set_op_timing(bool on) { return tape::Tape::get().timing.exchange(on); }

LeafWritePolicy set_leaf_write_policy(LeafWritePolicy policy, int64_t max_leaf_copy_bytes) {
  if (max_leaf_copy_bytes < 0)
    throw InvalidArgument("[refrain::set_leaf_write_policy] max_leaf_copy_bytes is " +
                          std::to_string(max_leaf_copy_bytes) + ", expected a number of bytes >= 0.");
  tape::TapeLock lock;
  lock.tape().max_leaf_copy_bytes = max_leaf_copy_bytes;
  return std::exchange(lock.tape().leaf_write_policy, policy);
}

void register_side_effect_op(const std::string& op) {
  if (op.find("::") == std::string::npos)
    throw InvalidArgument("[refrain::register_side_effect_op] found `" + op +
                          "`, expected \"namespace::name\", for example \"aten::copy_\".");
  tape::mark_effect_op(op);
}

void note_storage_resized(const c10::Storage& storage) {
  using namespace tape;
  if (!storage) return;
  auto& thread = ThreadState::get();
  TapeLock lock;
  settle(lock, thread);
  auto* value = find_value(lock, storage.unsafeGetStorageImpl());
  if (!value || value->private_copy) return;
  if (value->is_leaf())
    value->resized = true;
  else
    overwritten(lock, value, {}, nullptr, thread.unsettled);
}

}  // namespace refrain
