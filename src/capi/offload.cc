#include "refrain/offload.h"

#include "capi/errors.h"
#include "capi/handles.h"

using namespace refrain;

struct refrain_offload_scope_t {
  explicit refrain_offload_scope_t(const OffloadStore& store) : scope(store) {}
  OffloadScope scope;
};

namespace {

OffloadOptions options_of(const refrain_offload_options_t& given) {
  OffloadOptions options;
  options.store(given.to == 1 ? OffloadTo::kDisk : OffloadTo::kHost);
  if (given.has_compress != 0) options.compress(given.compress);
  if (given.strict >= 0) options.strict(given.strict != 0);
  if (given.pin_memory >= 0) options.pin_memory(given.pin_memory != 0);
  if (given.prefetch >= 0) options.prefetch(given.prefetch);
  if (given.min_bytes >= 0) options.min_bytes(given.min_bytes);
  if (given.max_in_flight >= 0) options.max_in_flight(given.max_in_flight);
  if (given.capacity >= 0) options.capacity(given.capacity);
  if (given.directory) options.directory(given.directory);
  return options;
}

}  // namespace

refrain_offload_store_t* refrain_offload_store_open(const refrain_offload_options_t* options) {
  return capi::made(
      [&] { return new refrain_offload_store_t{OffloadStore(options ? options_of(*options) : OffloadOptions())}; });
}

void refrain_offload_store_close(refrain_offload_store_t* store) { delete store; }

int32_t refrain_offload_store_flush(const refrain_offload_store_t* store) {
  return capi::guarded([&] {
    capi::require(store, "refrain_offload_store_flush", "store");
    store->store.flush();
  });
}

int32_t refrain_offload_store_stats(const refrain_offload_store_t* store, refrain_offload_stats_t* stats, size_t size,
                                    char** problem) {
  return capi::guarded([&] {
    capi::require(store, "refrain_offload_store_stats", "store");
    const auto now = store->store.stats();
    const refrain_offload_stats_t found{.values = now.values,
                                        .value_bytes = now.value_bytes,
                                        .refused = now.refused,
                                        .refused_bytes = now.refused_bytes,
                                        .written_bytes = now.written_bytes,
                                        .read_bytes = now.read_bytes,
                                        .fetches = now.fetches,
                                        .prefetched = now.prefetched,
                                        .store_stalls = now.store_stalls,
                                        .store_stall_ms = now.store_stall_ms,
                                        .fetch_stalls = now.fetch_stalls,
                                        .fetch_stall_ms = now.fetch_stall_ms,
                                        .in_flight_bytes = now.in_flight_bytes,
                                        .stored_bytes = now.stored_bytes,
                                        .file_bytes = now.file_bytes};
    capi::fill(stats, size, &found, sizeof(found), "refrain_offload_store_stats");
    if (problem) *problem = capi::owned_text(now.problem);
  });
}

refrain_offload_scope_t* refrain_offload_scope_open(const refrain_offload_store_t* store) {
  return capi::made([&] {
    capi::require(store, "refrain_offload_scope_open", "store");
    return new refrain_offload_scope_t(store->store);
  });
}

void refrain_offload_scope_close(refrain_offload_scope_t* scope) { delete scope; }
