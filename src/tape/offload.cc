#include "tape/offload.h"

#include <c10/util/Exception.h>

#include <atomic>

namespace refrain::tape {
namespace {

std::atomic<std::shared_ptr<OffloadStore>>& current() {
  static std::atomic<std::shared_ptr<OffloadStore>> store;
  return store;
}

}  // namespace

std::shared_ptr<Offloaded> store_or_keep(OffloadStore& store, const c10::Storage& bytes) {
  try {
    return store.store(bytes);
  } catch (const c10::OutOfMemoryError&) {
    return nullptr;
  }
}

std::shared_ptr<OffloadStore> offload_store() { return current().load(); }

std::shared_ptr<OffloadStore> set_offload_store(std::shared_ptr<OffloadStore> store) {
  return current().exchange(std::move(store));
}

}  // namespace refrain::tape
