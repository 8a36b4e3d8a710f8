#include "refrain/memory.h"

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/memory_cap.h"
#include "refrain/opaque_scope.h"

using namespace refrain;

struct refrain_memory_scope_t {
  MemoryScope scope;
};
struct refrain_memory_limit_t {
  explicit refrain_memory_limit_t(Budget budget) : limit(budget) {}
  MemoryLimit limit;
};
struct refrain_memory_cap_t {
  refrain_memory_cap_t(Budget budget, const MemoryCapOptions& options) : cap(budget, options) {}
  MemoryCap cap;
};
struct refrain_pin_t {
  explicit refrain_pin_t(std::vector<at::Tensor> tensors) : pin(std::move(tensors)) {}
  PinScope pin;
};
struct refrain_opaque_scope_t {
  refrain_opaque_scope_t(const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes)
      : scope(reads, writes) {}
  OpaqueScope scope;
};
struct refrain_cap_thread_t {
  CapThreadScope scope;
};

int32_t refrain_install_memory_tracking(void) {
  return capi::guarded([] { install_memory_tracking(); });
}

int32_t refrain_memory_stats(refrain_memory_stats_t* stats, size_t size) {
  return capi::guarded([&] {
    const auto now = memory_stats();
    const refrain_memory_stats_t found{.current = now.current,
                                       .peak = now.peak,
                                       .allocations = now.allocations,
                                       .resident = now.resident,
                                       .resident_peak = now.resident_peak,
                                       .resident_before = now.resident_before,
                                       .heap_held = now.heap_held,
                                       .heap_free = now.heap_free};
    capi::fill(stats, size, &found, sizeof(found), "refrain_memory_stats");
  });
}

int32_t refrain_reset_peak_memory(void) {
  return capi::guarded([] { reset_peak_memory(); });
}

int32_t refrain_release_free_memory(void) {
  return capi::guarded([] { release_free_memory(); });
}

refrain_memory_scope_t* refrain_memory_scope_open(void) {
  return capi::made([] { return new refrain_memory_scope_t; });
}

int32_t refrain_memory_scope_read(const refrain_memory_scope_t* scope, int64_t* current, int64_t* peak,
                                  int64_t* allocations) {
  return capi::guarded([&] {
    capi::require(scope, "refrain_memory_scope_read", "scope");
    if (current) *current = scope->scope.current();
    if (peak) *peak = scope->scope.peak();
    if (allocations) *allocations = scope->scope.allocations();
  });
}

void refrain_memory_scope_close(refrain_memory_scope_t* scope) { delete scope; }

refrain_memory_limit_t* refrain_memory_limit_open(const refrain_budget_t* budget) {
  return capi::made([&] { return new refrain_memory_limit_t(capi::budget_of(budget, "refrain_memory_limit_open")); });
}

void refrain_memory_limit_close(refrain_memory_limit_t* limit) { delete limit; }

refrain_memory_cap_t* refrain_memory_cap_open(const refrain_budget_t* budget,
                                              const refrain_memory_cap_options_t* options) {
  return capi::made([&] {
    return new refrain_memory_cap_t(capi::budget_of(budget, "refrain_memory_cap_open"), capi::cap_options_of(options));
  });
}

int32_t refrain_memory_cap_stats(const refrain_memory_cap_t* cap, refrain_memory_cap_stats_t* stats, size_t size) {
  return capi::guarded([&] {
    capi::require(cap, "refrain_memory_cap_stats", "cap");
    const auto now = cap->cap.stats();
    const refrain_memory_cap_stats_t found{.limit = now.limit,
                                           .process_limit = now.process_limit,
                                           .evictions = now.evictions,
                                           .evicted_bytes = now.evicted_bytes,
                                           .recomputes = now.recomputes,
                                           .recompute_ms = now.recompute_ms,
                                           .policy_ms = now.policy_ms,
                                           .unrecorded_steps = now.unrecorded_steps};
    capi::fill(stats, size, &found, sizeof(found), "refrain_memory_cap_stats");
  });
}

int32_t refrain_memory_cap_pin(refrain_memory_cap_t* cap, void* tensor) {
  return capi::guarded([&] {
    capi::require(cap, "refrain_memory_cap_pin", "cap");
    cap->cap.pin(capi::tensor_of(tensor, "refrain_memory_cap_pin"));
  });
}

void refrain_memory_cap_close(refrain_memory_cap_t* cap) { delete cap; }

refrain_pin_t* refrain_pin_open(void* const* tensors, size_t count) {
  return capi::made([&] { return new refrain_pin_t(capi::tensors_of(tensors, count, "refrain_pin_open")); });
}

void refrain_pin_close(refrain_pin_t* pin) { delete pin; }

refrain_opaque_scope_t* refrain_opaque_scope_open(void* const* reads, size_t read_count, void* const* writes,
                                                  size_t write_count) {
  return capi::made([&] {
    return new refrain_opaque_scope_t(capi::tensors_of(reads, read_count, "refrain_opaque_scope_open"),
                                      capi::tensors_of(writes, write_count, "refrain_opaque_scope_open"));
  });
}

void refrain_opaque_scope_close(refrain_opaque_scope_t* scope) { delete scope; }

refrain_cap_thread_t* refrain_cap_thread_open(void) {
  return capi::made([] { return new refrain_cap_thread_t; });
}

void refrain_cap_thread_close(refrain_cap_thread_t* scope) { delete scope; }
