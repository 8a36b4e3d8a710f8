#pragma once

#include <c10/core/Storage.h>

#include <cstdint>
#include <string>

#include "refrain/api.h"
#include "refrain/bytes.h"

namespace refrain {

/// Counts what the tape holds now and has done since the process started (or since `reset_tape_counters`).
struct TapeStats {
  int64_t live_ops = 0;       ///< recorded operators still on the tape
  int64_t live_values = 0;    ///< versions of storages known to the tape
  int64_t live_slots = 0;     ///< tensors that autograd saved inside regions and has not released
  int64_t live_regions = 0;   ///< checkpoint regions with something alive, rerun ones too
  int64_t recorded_ops = 0;   ///< counter: operators recorded
  int64_t replayed_ops = 0;   ///< counter: operators replayed
  int64_t replay_passes = 0;  ///< counter: replay passes (one per region and backward in the usual case)
  int64_t reruns = 0;         ///< counter: functions called a second time (`RecomputeMode::kRerunFunction`)
  int64_t leaf_copies = 0;    ///< counter: leaves copied, as they were overwritten while a recorded operator needs them
  Bytes leaf_copy_bytes = 0;  ///< bytes of such copies alive now
  double recorded_ms = 0;     ///< counter: forward time of recorded kernels, only while `set_op_timing(true)`
  double replayed_forward_ms = 0;  ///< counter: forward time of the kernels that were replayed, likewise
  double replay_ms = 0;            ///< counter: time inside replay passes, likewise
};

/// Takes a snapshot of the tape. Cost: one lock. Threads: any.
REFRAIN_API TapeStats tape_stats();

/// Sets the counters (not the live numbers) to zero. Threads: any.
REFRAIN_API void reset_tape_counters();

/// Times every recorded kernel. Default: off.
/// @return the old setting.
/// Cost: two clock reads per operator.
REFRAIN_API bool set_op_timing(bool on);

/// Says what happens when an operator overwrites a tensor that recorded operators read from outside (a *leaf*:
/// parameter, input, buffer) and that backward may need for a replay.
enum class LeafWritePolicy {
  kCopy,   ///< copy the old bytes first, while `max_leaf_copy_bytes` allows; beyond it as `kError`
  kError,  ///< no copy; a backward that needs the old bytes throws `CheckpointError`
};

/// Sets the policy of the process. Default: kCopy, 64 MiB alive at a time.
/// @param max_leaf_copy_bytes  bytes of copies alive at a time, >= 0.
/// @return the old policy.
/// @throws InvalidArgument  if `max_leaf_copy_bytes` is negative.
/// Threads: any.
REFRAIN_API LeafWritePolicy set_leaf_write_policy(LeafWritePolicy policy, Bytes max_leaf_copy_bytes = 64_MiB);

/// Hashes what recorded operators read from outside, and compares it before it is read again. Process-wide. Default:
/// off, and on inside `verify_checkpoint`.
///
/// - Read again: by a later recorded operator, by a replay, by a function that is rerun for its arguments.
/// - A difference that the tape did not see (a pointer kept from before) is then an error of the backward that needs
///   the old bytes; it names operator, argument, dtype and sizes.
/// @return the old setting.
/// Cost: each storage that comes from outside is read once for each operator that takes it, and once for each replay
/// pass: some 10 GB/s on the CPU (XXH3, as fast as memory); from a device it is copied first.
/// Threads: any.
REFRAIN_API bool set_check_inputs(bool on);

/// Declares that an operator has effects outside its tensors: it is never replayed and its outputs are kept.
///
/// Collectives, seeds and resizes are known already. Holds for later calls of the operator.
/// @param op  "namespace::name", all overloads.
/// @throws InvalidArgument  if `op` has no namespace.
/// Threads: any.
REFRAIN_API void register_side_effect_op(const std::string& op);

/// Tells the tape that `storage` has been given other memory by `resize_`, which is no operator: FSDP frees parameters
/// so, and fills them again before their backward. Call it after the change; the Python package does.
///
/// - What was read from outside is read anew by a replay, as autograd reads it. A replay that comes while the storage
///   is too small is a `CheckpointError`.
/// - What recorded operators made is recomputed.
/// Cost: a lookup. Threads: any.
REFRAIN_API void note_storage_resized(const c10::Storage& storage);

/// Checks on a small program that LibTorch still behaves as the tape needs: engine hook, fallback, version counters,
/// key order, graph-task callbacks.
/// @throws EnvironmentError  naming the first fact that no longer holds.
/// Cost: about 1 ms.
REFRAIN_API void self_test();

}  // namespace refrain
