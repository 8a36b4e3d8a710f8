#include "tape/offload.h"

#include <atomic>

#include "tape/storage_copy.h"

namespace refrain::tape {
namespace {

class InHostMemory final : public Offloaded {
 public:
  explicit InHostMemory(const c10::Storage& bytes) : device_(bytes.device()), host_(copy_storage_to(bytes, c10::kCPU)) {}
  c10::Storage fetch() override { return copy_storage_to(host_, device_); }

 private:
  c10::Device device_;
  c10::Storage host_;
};

class HostStore final : public OffloadStore {
 public:
  std::shared_ptr<Offloaded> store(const c10::Storage& bytes) override {
    if (bytes.device().is_cpu()) return nullptr;
    return std::make_shared<InHostMemory>(bytes);
  }
};

std::atomic<OffloadStore*>& current() {
  static std::atomic<OffloadStore*> store{&host_store()};
  return store;
}

}  // namespace

OffloadStore& host_store() {
  static auto* store = new HostStore;
  return *store;
}

OffloadStore& offload_store() { return *current().load(); }

OffloadStore& set_offload_store(OffloadStore& store) { return *current().exchange(&store); }

}  // namespace refrain::tape
