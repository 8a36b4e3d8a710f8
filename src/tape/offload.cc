#include "tape/offload.h"

#include <atomic>

namespace refrain::tape {
namespace {

std::atomic<std::shared_ptr<OffloadStore>>& current() {
  static std::atomic<std::shared_ptr<OffloadStore>> store;
  return store;
}

}  // namespace

std::shared_ptr<OffloadStore> offload_store() { return current().load(); }

std::shared_ptr<OffloadStore> set_offload_store(std::shared_ptr<OffloadStore> store) {
  return current().exchange(std::move(store));
}

}  // namespace refrain::tape
