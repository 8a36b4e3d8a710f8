#pragma once

#include <cstdint>
#include <string>

namespace refrain {

/// What the tape holds now and has done since the process started (or since `reset_tape_counters`).
struct TapeStats {
  int64_t live_ops = 0;      ///< recorded operators still on the tape
  int64_t live_values = 0;   ///< versions of storages known to the tape
  int64_t live_slots = 0;    ///< tensors that autograd saved inside regions and has not released
  int64_t live_regions = 0;  ///< checkpoint regions with something alive, rerun ones too
  int64_t recorded_ops = 0;  ///< counter: operators recorded
  int64_t replayed_ops = 0;  ///< counter: operators replayed
  int64_t replay_passes = 0;       ///< counter: replay passes (one per region and backward in the usual case)
  int64_t reruns = 0;        ///< counter: functions called again (`RecomputeMode::kRerunFunction`)
  int64_t leaf_copies = 0;   ///< counter: leaves copied because they were overwritten while a recorded operator needs them
  int64_t leaf_copy_bytes = 0;       ///< bytes of such copies alive now
  int64_t recorded_ns = 0;   ///< counter: forward time of recorded kernels, only while `set_op_timing(true)`
  int64_t replayed_forward_ns = 0;   ///< counter: forward time of the kernels that were replayed, likewise
  int64_t replay_ns = 0;     ///< counter: time inside replay passes, likewise
};

/// Snapshot. Threads: any. Cost: one lock.
TapeStats tape_stats();

/// Sets the counters (not the live numbers) to zero. Threads: any.
void reset_tape_counters();

/// Times every recorded kernel (two clock reads per operator). Returns the old setting. Default: off.
bool set_op_timing(bool on);

/// What happens when an operator overwrites a tensor that recorded operators read from outside (a *leaf*: parameter,
/// input, buffer) and that backward may need for a replay.
enum class LeafWritePolicy {
  kCopy,   ///< copy the old bytes first, while `max_leaf_copy_bytes` allows; beyond it as `kError`
  kError,  ///< no copy; a backward that needs the old bytes throws `CheckpointError`
};

/// Process-wide. Default: kCopy, 64 MiB alive at a time. Returns the old policy. Threads: any.
LeafWritePolicy set_leaf_write_policy(LeafWritePolicy policy, int64_t max_leaf_copy_bytes = int64_t{64} << 20);

/// Whether what recorded operators read from outside is hashed, and compared before it is read again: by a later recorded operator, by a
/// replay, by a function that is called again for its arguments. A difference that the tape did not see (a pointer kept from before) is then
/// an error of the backward that needs the old bytes; it names operator, argument, dtype and sizes. Returns the old setting. Default: off, and
/// on inside `verify_checkpoint`. Process-wide. Threads: any.
/// Cost: each storage that comes from outside is read once for each operator that takes it, and once for each replay pass: some 10 GB/s on the
/// CPU (XXH3, as fast as memory); from a device it is copied first.
bool set_check_inputs(bool on);

/// Declares that `op` ("namespace::name", all overloads) has effects outside its tensors: it is never replayed and its
/// outputs are kept. Collectives, seeds and resizes are known already. Threads: any. Holds for later calls of the op.
void register_side_effect_op(const std::string& op);

/// Checks on a small program that LibTorch still behaves as the tape needs: engine hook, fallback, version counters,
/// key order, graph-task callbacks. Cost: about 1 ms.
/// @throws Error naming the first fact that no longer holds.
void self_test();

}  // namespace refrain
