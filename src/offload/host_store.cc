#include <atomic>

#include "offload/host_bytes.h"
#include "offload/store.h"

namespace refrain::offload {
namespace {

class HostStore final : public Store, public std::enable_shared_from_this<HostStore> {
 public:
  explicit HostStore(const OffloadOptions& options) : options_(options) {}

  std::shared_ptr<tape::Offloaded> store(const c10::Storage& bytes) override {
    const auto nbytes = static_cast<Bytes>(bytes.nbytes());
    if (bytes.device().is_cpu() || nbytes < options_.min_bytes()) return nullptr;
    auto copy = HostBytes::copy_of(bytes, options_.pin_memory());
    ++values_;
    value_bytes_ += nbytes;
    stored_bytes_ += nbytes;
    return std::make_shared<InHostMemory>(shared_from_this(), std::move(copy), bytes);
  }

  void flush() override {}

  OffloadStats stats() override {
    OffloadStats now;
    now.values = values_;
    now.value_bytes = value_bytes_;
    now.fetches = fetches_;
    now.stored_bytes = stored_bytes_;
    return now;
  }

  void reset_stats() override { values_ = value_bytes_ = fetches_ = 0; }

 private:
  class InHostMemory final : public tape::Offloaded {
   public:
    InHostMemory(std::shared_ptr<HostStore> store, HostBytes copy, const c10::Storage& from)
        : store_(std::move(store)), copy_(std::move(copy)), device_(from.device()), nbytes_(from.nbytes()) {}
    ~InHostMemory() override { store_->stored_bytes_ -= static_cast<Bytes>(nbytes_); }
    c10::Storage fetch() override {
      ++store_->fetches_;
      return copy_.to(device_);
    }

   private:
    const std::shared_ptr<HostStore> store_;
    const HostBytes copy_;
    const c10::Device device_;
    const size_t nbytes_;
  };

  const OffloadOptions options_;
  std::atomic<int64_t> values_{0}, fetches_{0};
  std::atomic<Bytes> value_bytes_{0}, stored_bytes_{0};
};

}  // namespace

std::shared_ptr<Store> make_host_store(const OffloadOptions& options) { return std::make_shared<HostStore>(options); }

}  // namespace refrain::offload
