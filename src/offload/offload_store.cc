#include <fmt/format.h>

#include "offload/compression.h"
#include "offload/offload_scope.h"
#include "offload/store.h"
#include "refrain/checkpoint.h"
#include "refrain/error.h"

namespace refrain {
namespace {

std::shared_ptr<offload::Store> make_store(const OffloadOptions& options) {
  const std::pair<const char*, Bytes> sizes[] = {{"prefetch", options.prefetch()},
                                                 {"min_bytes", options.min_bytes()},
                                                 {"max_in_flight", options.max_in_flight()},
                                                 {"capacity", options.capacity()}};
  for (const auto& [name, bytes] : sizes)
    if (bytes < 0)
      throw InvalidArgument(fmt::format("[refrain::offload] {} is {}, expected a number of bytes >= 0.", name, bytes));
  offload::check_level(options.compress());
  if (options.store() == OffloadTo::kHost) return offload::make_host_store(options);
  return offload::make_disk_store(options, offload::open_scratch_file(options.directory()));
}

std::shared_ptr<offload::Store> default_store() {
  static const auto store = offload::make_host_store(OffloadOptions().min_bytes(0));
  return store;
}

// The tape has no store until one is set.
[[maybe_unused]] const bool has_default = (reset_offload_store(), true);

}  // namespace

OffloadStore::OffloadStore(const OffloadOptions& options) : store_(make_store(options)) {}
void OffloadStore::flush() const { store_->flush(); }
OffloadStats OffloadStore::stats() const { return store_->stats(); }
void OffloadStore::reset_stats() const { store_->reset_stats(); }

void set_offload_store(const OffloadStore& store) { tape::set_offload_store(store.get()); }
void reset_offload_store() { tape::set_offload_store(default_store()); }

OffloadScope::OffloadScope(const OffloadStore& store) : saver_(std::make_unique<tape::OffloadingSaver>(store.get())) {}
OffloadScope::~OffloadScope() = default;

CheckpointOptions& CheckpointOptions::offload(const OffloadStore& store) {
  offload_ = store.get();
  return *this;
}

}  // namespace refrain
