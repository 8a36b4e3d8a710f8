#pragma once

#include <stddef.h>
#include <stdint.h>

#include "refrain/api.h"
#include "refrain/c_api_timeline.h"

/// Gives the library to other languages: plain C, for a binding by `dlopen`. Python's is python/refrain.
///
/// - Nothing is thrown through it. A function that can fail returns a `refrain_code`; one that makes a handle returns
///   null instead. Why is then in `refrain_last_code` and `refrain_last_message` of the same thread.
/// - A handle is freed by its `_close` function, once. Null is ignored. Scopes are closed on the thread that opened
///   them, in any order.
/// - Tensors cross as `void*`: LibTorch's `c10::TensorImpl*`, Python's `Tensor._cdata`. The caller keeps them alive for
///   the call.
/// - Text that is returned as `char*` belongs to the caller, who frees it with `refrain_free`. Text is UTF-8.
/// - A struct is filled up to the `size` that the caller gives, so that a caller compiled earlier still works.
/// - Numbers mean what the C++ class or function of the same name says; see its header.
///
/// Threads: as the C++ function. A caller with a global lock (Python's GIL) releases it for all calls but those that
/// say that they neither wait nor run operators.
#ifdef __cplusplus
extern "C" {
#endif
// NOLINTBEGIN(modernize-use-using): this is C

/// Grows by one when a function or field of this header changes its meaning or goes. What is only added keeps it.
#define REFRAIN_C_API_VERSION 1

/// Returns the `REFRAIN_C_API_VERSION` that the library was compiled with.
REFRAIN_API int32_t refrain_api_version(void);
/// Returns the library's version, "0.1.0". Valid until the process ends.
REFRAIN_API const char* refrain_version(void);
/// Returns the version of LibTorch that the library was compiled with, "2.13.0". Valid until the process ends.
REFRAIN_API const char* refrain_torch_version(void);

/// Says what went wrong: one code for each exception class of refrain/error.h and refrain/torch_error.h.
typedef enum refrain_code {
  REFRAIN_OK = 0,
  REFRAIN_INVALID_ARGUMENT = 1,
  REFRAIN_FORMAT_ERROR = 2,
  REFRAIN_FILE_ERROR = 3,
  REFRAIN_ENVIRONMENT_ERROR = 4,
  REFRAIN_INTERNAL_ERROR = 5,
  REFRAIN_CHECKPOINT_ERROR = 6,
  REFRAIN_OFFLOAD_ERROR = 7,
  REFRAIN_DISTRIBUTED_ERROR = 8,
  REFRAIN_OUT_OF_MEMORY = 9,    ///< `refrain_last_out_of_memory` has the numbers
  REFRAIN_TORCH_ERROR = 10,     ///< another error of LibTorch
  REFRAIN_OTHER_ERROR = 11,     ///< any other exception
  REFRAIN_CALLBACK_FAILED = 12  ///< a function of the caller returned failure
} refrain_code;

/// The numbers of an `OutOfMemory`, in bytes.
typedef struct refrain_out_of_memory_t {
  int32_t reason;  ///< `OutOfMemoryReason`: 0 a limit, 1 a cap, 2 the process, 3 `max_overhead`
  int32_t unused;
  int64_t requested, in_use, limit, min_limit;
} refrain_out_of_memory_t;

/// Returns the code of the last call on this thread that failed. Does not wait.
REFRAIN_API int32_t refrain_last_code(void);
/// Returns its message. Valid until the next call on this thread that fails. Does not wait.
REFRAIN_API const char* refrain_last_message(void);
/// Fills in the numbers of the last `REFRAIN_OUT_OF_MEMORY` on this thread.
REFRAIN_API int32_t refrain_last_out_of_memory(refrain_out_of_memory_t* numbers, size_t size);
/// Fills in the numbers of an `OutOfMemory` that an operator threw and the caller's language caught: `find_refusal` in
/// refrain/refusal.h. Does not wait.
/// @param text  its message, or a text that contains it.
/// @return 1; 0 if the message is none of this thread's last refusals.
REFRAIN_API int32_t refrain_find_refusal(const char* text, refrain_out_of_memory_t* numbers, size_t size);
/// Frees text of this library; null is ignored.
REFRAIN_API void refrain_free(void* text);

// ---- Bytes

/// Reads "2GiB", as `parse_bytes`.
REFRAIN_API int32_t refrain_parse_bytes(const char* text, int64_t* bytes);
/// Writes "2.0 GiB", as `format_bytes`.
REFRAIN_API char* refrain_format_bytes(int64_t bytes);

/// How much memory a training may use: `Budget`.
typedef struct refrain_budget_t {
  int32_t kind;  ///< 0: `Budget::bytes`, 1: `fraction`, 2: `process`, 3: `available`
  int32_t unused;
  int64_t bytes;  ///< of kinds 0 and 2
  double part;    ///< of kinds 1 and 3
} refrain_budget_t;

// ---- Policies: refrain/selective.h

typedef struct refrain_policy_t refrain_policy_t;
/// An operator that a policy is asked about: `OpContext`. Valid only in that call.
typedef struct refrain_op_t refrain_op_t;

/// Makes a policy by the name of its function: "save_matmuls", "save_compute_intensive", "save_random",
/// "dots_saveable", "nothing_saveable", "everything_saveable", "save_every_second_matmul", "offload_compute_intensive".
REFRAIN_API refrain_policy_t* refrain_policy_named(const char* name);
/// Makes a policy from names: "save_ops", "offload_ops", "save_only_these_names", "save_any_names_but_these" or
/// "offload_only_these_names".
REFRAIN_API refrain_policy_t* refrain_policy_of_names(const char* kind, const char* const* names, size_t count);
/// Makes `offload_larger_than(bytes)`.
REFRAIN_API refrain_policy_t* refrain_policy_offload_larger_than(int64_t bytes);
/// Makes `and_then(first, second)`.
REFRAIN_API refrain_policy_t* refrain_policy_and_then(const refrain_policy_t* first, const refrain_policy_t* second);
/// Makes a policy that asks the caller.
/// @param decide   returns a `CheckpointPolicy` (0 to 4), or a negative number: it failed, and the operator throws.
/// @param release  called with `context` when the last user of the policy is gone, on any thread; may be null.
REFRAIN_API refrain_policy_t* refrain_policy_callback(int32_t (*decide)(void* context, const refrain_op_t* op),
                                                      void* context, void (*release)(void* context));
/// Frees the handle; regions that use the policy keep it.
REFRAIN_API void refrain_policy_close(refrain_policy_t* policy);

/// Describe an operator to a policy: see `OpContext`. None of them waits. Text is valid until the policy returns.
REFRAIN_API const char* refrain_op_name(const refrain_op_t* op);
REFRAIN_API const char* refrain_op_overload(const refrain_op_t* op);
REFRAIN_API const char* refrain_op_scope(const refrain_op_t* op);
REFRAIN_API const char* refrain_op_checkpoint_name(const refrain_op_t* op);
REFRAIN_API int32_t refrain_op_is_random(const refrain_op_t* op);
REFRAIN_API int64_t refrain_op_position(const refrain_op_t* op);
REFRAIN_API int64_t refrain_op_count(const refrain_op_t* op, const char* key);
REFRAIN_API int64_t refrain_op_output_bytes(const refrain_op_t* op);
/// Returns how many tensors are among the arguments (`of` 0) or the results (1).
REFRAIN_API size_t refrain_op_tensors(const refrain_op_t* op, int32_t of);
/// Describes one of them; `sizes` has `dimensions` numbers. `dtype` is a `c10::ScalarType`, `device` a
/// `c10::DeviceType`.
REFRAIN_API void refrain_op_tensor(const refrain_op_t* op, int32_t of, size_t index, const int64_t** sizes,
                                   size_t* dimensions, int32_t* dtype, int32_t* device);

// ---- Offload: refrain/offload.h

typedef struct refrain_offload_store_t refrain_offload_store_t;
typedef struct refrain_offload_scope_t refrain_offload_scope_t;

/// `OffloadOptions`. A negative number, or null, is the default.
typedef struct refrain_offload_options_t {
  int32_t to;  ///< 0: host, 1: disk
  int32_t compress;
  int32_t has_compress;  ///< `compress` may be negative
  int32_t strict;
  int32_t pin_memory;
  int32_t unused;
  int64_t prefetch, min_bytes, max_in_flight, capacity;
  const char* directory;
} refrain_offload_options_t;

/// `OffloadStats`, but for `problem`.
typedef struct refrain_offload_stats_t {
  int64_t values, value_bytes, refused, refused_bytes, written_bytes, read_bytes, fetches, prefetched, store_stalls;
  double store_stall_ms;
  int64_t fetch_stalls;
  double fetch_stall_ms;
  int64_t in_flight_bytes, stored_bytes, file_bytes;
} refrain_offload_stats_t;

REFRAIN_API refrain_offload_store_t* refrain_offload_store_open(const refrain_offload_options_t* options);
REFRAIN_API void refrain_offload_store_close(refrain_offload_store_t* store);
REFRAIN_API int32_t refrain_offload_store_flush(const refrain_offload_store_t* store);
/// @param problem  null, or set to `OffloadStats::problem`.
REFRAIN_API int32_t refrain_offload_store_stats(const refrain_offload_store_t* store, refrain_offload_stats_t* stats,
                                                size_t size, char** problem);
REFRAIN_API refrain_offload_scope_t* refrain_offload_scope_open(const refrain_offload_store_t* store);
REFRAIN_API void refrain_offload_scope_close(refrain_offload_scope_t* scope);

// ---- Regions: refrain/checkpoint.h

typedef struct refrain_region_t refrain_region_t;

/// `CheckpointOptions`, as far as a region that calls no function can have them.
typedef struct refrain_region_options_t {
  int32_t preserve_rng_state;  ///< default 1
  int32_t offload_inputs;      ///< default 0; `offload_to_cpu`: tensors given to `refrain_region_add_input` are stored
  const refrain_policy_t* policy;        ///< default null
  const refrain_offload_store_t* store;  ///< default null
} refrain_region_options_t;

/// Opens a region on this thread: what runs until it is closed is recorded and replayed by backward, as the function of
/// `checkpoint` is. Does not wait, and runs no operators.
/// @param options  null for the defaults.
REFRAIN_API refrain_region_t* refrain_region_open(const refrain_region_options_t* options);
/// Gives a tensor among the arguments to the region's `offload_inputs`.
REFRAIN_API int32_t refrain_region_add_input(refrain_region_t* region, void* tensor);
/// Closes the region. With a store it may wait for it, and tensors of the region may be freed.
REFRAIN_API void refrain_region_close(refrain_region_t* region);
/// Closes the region of a function that failed: as the C++ region does while an exception passes, it gives no advice.
REFRAIN_API void refrain_region_close_failed(refrain_region_t* region);

/// Returns 1 or 0. Do not wait.
REFRAIN_API int32_t refrain_is_checkpointing(void);
REFRAIN_API int32_t refrain_is_recomputing(void);
/// Sets it for the process. @return the old setting.
REFRAIN_API int32_t refrain_set_checkpointing_enabled(int32_t value);

/// Names a tensor for the policy of the open region: `checkpoint_name`.
REFRAIN_API int32_t refrain_checkpoint_name(void* tensor, const char* name);
/// Decides for a tensor without asking the policy: `set_policy`. @param policy  a `CheckpointPolicy`, 0 to 4.
REFRAIN_API int32_t refrain_set_policy(void* tensor, int32_t policy);

// ---- Memory: refrain/memory.h

/// `MemoryStats`, in its order.
typedef struct refrain_memory_stats_t {
  int64_t current, peak, allocations, resident, resident_peak, resident_before, heap_held, heap_free;
} refrain_memory_stats_t;

REFRAIN_API int32_t refrain_install_memory_tracking(void);
REFRAIN_API int32_t refrain_memory_stats(refrain_memory_stats_t* stats, size_t size);
REFRAIN_API int32_t refrain_reset_peak_memory(void);
REFRAIN_API int32_t refrain_release_free_memory(void);

typedef struct refrain_memory_scope_t refrain_memory_scope_t;
REFRAIN_API refrain_memory_scope_t* refrain_memory_scope_open(void);
REFRAIN_API int32_t refrain_memory_scope_read(const refrain_memory_scope_t* scope, int64_t* current, int64_t* peak,
                                              int64_t* allocations);
REFRAIN_API void refrain_memory_scope_close(refrain_memory_scope_t* scope);

typedef struct refrain_memory_limit_t refrain_memory_limit_t;
REFRAIN_API refrain_memory_limit_t* refrain_memory_limit_open(const refrain_budget_t* budget);
REFRAIN_API void refrain_memory_limit_close(refrain_memory_limit_t* limit);

// ---- Caps: refrain/memory_cap.h

typedef struct refrain_memory_cap_t refrain_memory_cap_t;
typedef struct refrain_pin_t refrain_pin_t;
typedef struct refrain_cap_thread_t refrain_cap_thread_t;

/// `MemoryCapOptions`.
typedef struct refrain_memory_cap_options_t {
  int32_t heuristic;      ///< `EvictionHeuristic`: 0 h_DTR, 1 least recently used, 2 largest, 3 MSPS
  int32_t always_record;  ///< 0 or 1; default 0
  int64_t min_bytes;      ///< default 512
  double max_overhead;    ///< default infinity
} refrain_memory_cap_options_t;

/// `MemoryCapStats`, in its order.
typedef struct refrain_memory_cap_stats_t {
  int64_t limit, process_limit, evictions, evicted_bytes, recomputes;
  double recompute_ms, policy_ms;
  int64_t unrecorded_steps;
} refrain_memory_cap_stats_t;

/// @param options  null for the defaults.
REFRAIN_API refrain_memory_cap_t* refrain_memory_cap_open(const refrain_budget_t* budget,
                                                          const refrain_memory_cap_options_t* options);
REFRAIN_API int32_t refrain_memory_cap_stats(const refrain_memory_cap_t* cap, refrain_memory_cap_stats_t* stats,
                                             size_t size);
/// Keeps a tensor's bytes resident while its storage lives.
REFRAIN_API int32_t refrain_memory_cap_pin(refrain_memory_cap_t* cap, void* tensor);
REFRAIN_API void refrain_memory_cap_close(refrain_memory_cap_t* cap);

/// Opens a `PinScope`.
REFRAIN_API refrain_pin_t* refrain_pin_open(void* const* tensors, size_t count);
REFRAIN_API void refrain_pin_close(refrain_pin_t* pin);

/// Opens an `OpaqueScope`.
typedef struct refrain_opaque_scope_t refrain_opaque_scope_t;
REFRAIN_API refrain_opaque_scope_t* refrain_opaque_scope_open(void* const* reads, size_t read_count,
                                                              void* const* writes, size_t write_count);
REFRAIN_API void refrain_opaque_scope_close(refrain_opaque_scope_t* scope);

/// Opens a `CapThreadScope`.
REFRAIN_API refrain_cap_thread_t* refrain_cap_thread_open(void);
REFRAIN_API void refrain_cap_thread_close(refrain_cap_thread_t* scope);

// ---- Plans and budgets: refrain/memory_budget.h, refrain/least_limit.h, refrain/largest_batch.h

/// A step of the caller. @return 0; `REFRAIN_OUT_OF_MEMORY` if an operator threw it; any other number if it failed, and
/// the function that called it returns `REFRAIN_CALLBACK_FAILED`.
typedef int32_t (*refrain_step_t)(void* context);

typedef struct refrain_step_trace_t refrain_step_trace_t;
typedef struct refrain_step_plan_t refrain_step_plan_t;
typedef struct refrain_memory_budget_t refrain_memory_budget_t;
typedef struct refrain_least_limit_t refrain_least_limit_t;

/// Runs and traces a step: `profile`.
REFRAIN_API refrain_step_trace_t* refrain_profile(refrain_step_t step, void* context, int32_t runs, const char* model);
REFRAIN_API refrain_step_trace_t* refrain_step_trace_load(const char* path);
REFRAIN_API int32_t refrain_step_trace_save(const refrain_step_trace_t* trace, const char* path);
REFRAIN_API int32_t refrain_step_trace_read(const refrain_step_trace_t* trace, int64_t* operators, int64_t* peak,
                                            double* operators_ms);
/// `explain` of refrain/explain_plan.h. @param text, json  each null, or set to the text of that name.
REFRAIN_API int32_t refrain_step_trace_explain(const refrain_step_trace_t* trace, int64_t most_holders, char** text,
                                               char** json);
REFRAIN_API void refrain_step_trace_close(refrain_step_trace_t* trace);

/// `plan_step`. @param time_limit_s  seconds; negative for the default.
REFRAIN_API refrain_step_plan_t* refrain_plan_step(const refrain_step_trace_t* trace, const refrain_budget_t* budget,
                                                   double time_limit_s);
REFRAIN_API refrain_step_plan_t* refrain_step_plan_load(const char* path);
REFRAIN_API int32_t refrain_step_plan_save(const refrain_step_plan_t* plan, const char* path);
REFRAIN_API int32_t refrain_step_plan_read(const refrain_step_plan_t* plan, int32_t* fits, int64_t* peak,
                                           double* added_ms, double* lower_bound_ms);
/// @param is_whole  0: `brief`, 1: `report`.
REFRAIN_API char* refrain_step_plan_report(const refrain_step_plan_t* plan, int32_t is_whole);
/// As `refrain_step_trace_explain`.
REFRAIN_API int32_t refrain_step_plan_explain(const refrain_step_plan_t* plan, int64_t most_holders, char** text,
                                              char** json);
REFRAIN_API void refrain_step_plan_close(refrain_step_plan_t* plan);

/// `MemoryBudgetStats`, but for `first_mismatch`.
typedef struct refrain_memory_budget_stats_t {
  int64_t traced_steps, planned_steps, mismatched_steps;
  double planning_ms;
  int64_t replans, unrecorded_steps;
} refrain_memory_budget_stats_t;

REFRAIN_API refrain_memory_budget_t* refrain_memory_budget_open(const refrain_budget_t* budget);
REFRAIN_API refrain_memory_budget_t* refrain_memory_budget_open_plan(const refrain_step_plan_t* plan);
/// @param first_mismatch  null, or set to `MemoryBudgetStats::first_mismatch`.
REFRAIN_API int32_t refrain_memory_budget_stats(const refrain_memory_budget_t* budget,
                                                refrain_memory_budget_stats_t* stats, size_t size,
                                                char** first_mismatch);
REFRAIN_API char* refrain_memory_budget_report(const refrain_memory_budget_t* budget);
REFRAIN_API void refrain_memory_budget_close(refrain_memory_budget_t* budget);

/// `LeastLimitOptions`. A number that is 0, or null, is the default.
typedef struct refrain_least_limit_options_t {
  double tolerance;
  const double* multiples;
  size_t multiples_count;
  int32_t runs, steps;
  const refrain_memory_cap_options_t* cap;
} refrain_least_limit_options_t;

/// `LeastLimit`, but for its costs.
typedef struct refrain_least_limit_values_t {
  int64_t limit, refused, level, peak;
  double baseline_ms;
  int64_t steps;
} refrain_least_limit_values_t;

/// `LimitCost`, in its order.
typedef struct refrain_limit_cost_t {
  int64_t limit, peak;
  double ms, ratio;
  int64_t recomputes, evictions;
  int64_t holds;
} refrain_limit_cost_t;

/// @param options  null for the defaults.
REFRAIN_API refrain_least_limit_t* refrain_least_limit(refrain_step_t step, void* context,
                                                       const refrain_least_limit_options_t* options);
REFRAIN_API int32_t refrain_least_limit_read(const refrain_least_limit_t* found, refrain_least_limit_values_t* values,
                                             size_t size);
REFRAIN_API size_t refrain_least_limit_costs(const refrain_least_limit_t* found);
/// @param index  below `refrain_least_limit_costs`.
REFRAIN_API int32_t refrain_least_limit_cost(const refrain_least_limit_t* found, size_t index,
                                             refrain_limit_cost_t* cost, size_t size);
REFRAIN_API char* refrain_least_limit_report(const refrain_least_limit_t* found);
REFRAIN_API void refrain_least_limit_close(refrain_least_limit_t* found);

/// As `refrain_step_t`, for a batch of so many examples.
typedef int32_t (*refrain_batch_step_t)(void* context, int64_t batch);

typedef struct refrain_largest_batch_t refrain_largest_batch_t;

/// `LargestBatch`, but for its trials.
typedef struct refrain_largest_batch_values_t {
  int64_t batch, next_batch, peak, next_peak, resident_peak;
} refrain_largest_batch_values_t;

/// `BatchTrial`, in its order.
typedef struct refrain_batch_trial_t {
  int64_t batch, fits, peak, resident_peak;
} refrain_batch_trial_t;

/// Begins a search of `largest_batch`. The steps will run under the calling thread's state of LibTorch: grad mode,
/// autocast, modes.
REFRAIN_API refrain_largest_batch_t* refrain_largest_batch_open(int64_t limit, int64_t min_batch, int64_t max_batch);
/// Runs it, once, on any thread; the steps run on threads of their own.
REFRAIN_API int32_t refrain_largest_batch_run(refrain_largest_batch_t* search, refrain_batch_step_t step,
                                              void* context);
REFRAIN_API int32_t refrain_largest_batch_read(const refrain_largest_batch_t* search,
                                               refrain_largest_batch_values_t* values, size_t size);
REFRAIN_API size_t refrain_largest_batch_trials(const refrain_largest_batch_t* search);
/// @param index  below `refrain_largest_batch_trials`.
REFRAIN_API int32_t refrain_largest_batch_trial(const refrain_largest_batch_t* search, size_t index,
                                                refrain_batch_trial_t* trial, size_t size);
REFRAIN_API void refrain_largest_batch_close(refrain_largest_batch_t* search);

// ---- Plans for steps of other compilers: docs/design/compile.md

/// Plans for a step that the caller describes and runs: no operator of LibTorch is involved.
typedef struct refrain_graph_planner_t refrain_graph_planner_t;
/// Reads a trace, JSON as `refrain_step_trace_save` writes it. The search is done by the first call that asks for its
/// result, and answers all budgets after that. @param time_limit_s  seconds; negative for the default.
REFRAIN_API refrain_graph_planner_t* refrain_graph_planner_open(const char* trace, double time_limit_s);
/// Says the peak of the step as it is, and the lowest that a plan reaches, in bytes.
REFRAIN_API int32_t refrain_graph_planner_read(refrain_graph_planner_t* planner, int64_t* plain, int64_t* least);
/// Returns the fastest plan that was found for a budget on the peak: `bytes`, or a `fraction` from least to plain unless
/// that is negative. JSON: {fits, peak_bytes, plain_peak_bytes, least_bytes, floor_bytes, added_ns, step_ns,
/// recomputed_ops, solver, timed_out, schedule: {places: [[place, "drop" | "recompute", id, ...]]},
/// in_use: bytes at the start of each operator and the end, peaks: the same of each}.
REFRAIN_API char* refrain_graph_planner_plan(refrain_graph_planner_t* planner, int64_t bytes, double fraction);
/// Returns an array of such plans, for `points` budgets from the lowest peak to that of the step as it is.
REFRAIN_API char* refrain_graph_planner_pareto(refrain_graph_planner_t* planner, int32_t points);
REFRAIN_API void refrain_graph_planner_close(refrain_graph_planner_t* planner);

// ---- Backward on an engine of the caller: refrain/backward.h

typedef struct refrain_backward_t refrain_backward_t;

/// Begins a `BackwardRun`.
REFRAIN_API refrain_backward_t* refrain_backward_begin(void* const* roots, size_t count, int32_t accumulates);
/// Ends it: the backward has succeeded. The handle is closed all the same.
REFRAIN_API int32_t refrain_backward_end(refrain_backward_t* run);
/// Closes it; without `refrain_backward_end` the backward has failed.
REFRAIN_API void refrain_backward_close(refrain_backward_t* run);

// ---- The tape: refrain/tape.h, refrain/explain.h

/// `TapeStats`, in its order.
typedef struct refrain_tape_stats_t {
  int64_t live_ops, live_values, live_slots, live_regions, recorded_ops, replayed_ops, replay_passes, reruns,
      leaf_copies, leaf_copy_bytes;
  double recorded_ms, replayed_forward_ms, replay_ms;
} refrain_tape_stats_t;

REFRAIN_API int32_t refrain_tape_stats(refrain_tape_stats_t* stats, size_t size);
REFRAIN_API int32_t refrain_reset_tape_counters(void);
/// Sets it for the process. @return the old setting.
REFRAIN_API int32_t refrain_set_check_inputs(int32_t value);
REFRAIN_API int32_t refrain_register_side_effect_op(const char* op);
/// `note_storage_resized`. @param storage  a `c10::StorageImpl*`, in Python `UntypedStorage._cdata`.
REFRAIN_API int32_t refrain_note_storage_resized(void* storage);
REFRAIN_API int32_t refrain_self_test(void);

typedef struct refrain_saved_observer_t refrain_saved_observer_t;
/// Observes the saved tensors of this thread until it is closed: `saved_tensors`.
REFRAIN_API refrain_saved_observer_t* refrain_saved_observer_open(void);
REFRAIN_API char* refrain_saved_observer_text(const refrain_saved_observer_t* observer);
/// Returns `SavedReport` as JSON: its fields, `tensors` with `scalar_type` (a `c10::ScalarType`), and `text`.
REFRAIN_API char* refrain_saved_observer_json(const refrain_saved_observer_t* observer);
REFRAIN_API void refrain_saved_observer_close(refrain_saved_observer_t* observer);

// NOLINTEND(modernize-use-using)
#ifdef __cplusplus
}  // extern "C"
#endif
