#include "refrain/tape.h"

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/backward.h"

using namespace refrain;

struct refrain_backward_t {
  refrain_backward_t(const std::vector<at::Tensor>& roots, bool accumulates) : run(roots, accumulates) {}
  BackwardRun run;
};

refrain_backward_t* refrain_backward_begin(void* const* roots, size_t count, int32_t accumulates) {
  return capi::made([&] {
    return new refrain_backward_t(capi::tensors_of(roots, count, "refrain_backward_begin"), accumulates != 0);
  });
}

int32_t refrain_backward_end(refrain_backward_t* run) {
  return capi::guarded([&] {
    capi::require(run, "refrain_backward_end", "run");
    run->run.end();
  });
}

void refrain_backward_close(refrain_backward_t* run) { delete run; }

int32_t refrain_tape_stats(refrain_tape_stats_t* stats, size_t size) {
  return capi::guarded([&] {
    const auto now = tape_stats();
    const refrain_tape_stats_t found{.live_ops = now.live_ops,
                                     .live_values = now.live_values,
                                     .live_slots = now.live_slots,
                                     .live_regions = now.live_regions,
                                     .recorded_ops = now.recorded_ops,
                                     .replayed_ops = now.replayed_ops,
                                     .replay_passes = now.replay_passes,
                                     .reruns = now.reruns,
                                     .leaf_copies = now.leaf_copies,
                                     .leaf_copy_bytes = now.leaf_copy_bytes,
                                     .recorded_ms = now.recorded_ms,
                                     .replayed_forward_ms = now.replayed_forward_ms,
                                     .replay_ms = now.replay_ms};
    capi::fill(stats, size, &found, sizeof(found), "refrain_tape_stats");
  });
}

int32_t refrain_reset_tape_counters(void) {
  return capi::guarded([] { reset_tape_counters(); });
}

int32_t refrain_set_check_inputs(int32_t value) { return set_check_inputs(value != 0) ? 1 : 0; }

int32_t refrain_note_storage_resized(void* storage) {
  return capi::guarded([&] {
    capi::require(storage, "refrain_note_storage_resized", "storage");
    note_storage_resized(
        c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(static_cast<c10::StorageImpl*>(storage))));
  });
}

int32_t refrain_register_side_effect_op(const char* op) {
  return capi::guarded([&] {
    capi::require(op, "refrain_register_side_effect_op", "op");
    register_side_effect_op(op);
  });
}

int32_t refrain_self_test(void) {
  return capi::guarded([] { self_test(); });
}
