// Counts what torch's CPU allocator hands out, to the byte requested. Loaded into the Python process with ctypes, so it
// needs c10 headers only. One 64-byte header in front of each block holds its size: alignment stays torch's own.
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdint>

namespace {

constexpr size_t kHeader = 64;

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    char* block = static_cast<char*>(base_->raw_allocate(bytes + kHeader));
    *reinterpret_cast<int64_t*>(block) = static_cast<int64_t>(bytes);
    const int64_t now = current.fetch_add(static_cast<int64_t>(bytes)) + static_cast<int64_t>(bytes);
    int64_t seen = peak.load();
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {
    }
    char* data = block + kHeader;
    return {data, data, &release, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  static void release(void* data) {
    if (data == nullptr) return;
    char* block = static_cast<char*>(data) - kHeader;
    current.fetch_sub(*reinterpret_cast<int64_t*>(block));
    base_->raw_deallocate(block);
  }

  inline static c10::Allocator* base_ = nullptr;
  inline static std::atomic<int64_t> current{0};
  inline static std::atomic<int64_t> peak{0};
};

}  // namespace

extern "C" {
// Once, before the first tensor that should count.
void cputrack_install() {
  if (CountingAllocator::base_ != nullptr) return;
  CountingAllocator::base_ = c10::GetDefaultCPUAllocator();
  c10::SetCPUAllocator(new CountingAllocator, /*priority=*/255);
}
int64_t cputrack_current() { return CountingAllocator::current; }
int64_t cputrack_peak() { return CountingAllocator::peak; }
void cputrack_reset_peak() { CountingAllocator::peak = CountingAllocator::current.load(); }
}
