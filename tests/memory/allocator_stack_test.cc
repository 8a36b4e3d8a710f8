// Each layer alone, over a heap that is watched; then one conformance suite over every layer.
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "memory/block.h"
#include "memory/failing_allocator.h"
#include "memory/heap_allocator.h"
#include "memory/limiting_allocator.h"
#include "memory/poisoning_allocator.h"
#include "memory/torch_allocator.h"
#include "memory/tracking_allocator.h"

namespace refrain {
namespace {

/// Checks that every piece comes back once and with its size. Keeps freed memory, so that tests may look at it.
class WatchedHeap final : public SizedAllocator {
 public:
  ~WatchedHeap() override {
    EXPECT_TRUE(live_.empty()) << live_.size() << " pieces were not given back";
    for (void* data : freed_) std::free(data);
  }

  void* allocate(size_t bytes) override {
    std::lock_guard lock(mutex_);
    void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::memset(data, 0x11, bytes);
    live_[data] = bytes;
    ++calls_;
    return data;
  }

  void deallocate(void* data, size_t bytes) noexcept override {
    std::lock_guard lock(mutex_);
    const auto found = live_.find(data);
    ASSERT_NE(found, live_.end()) << "not given out, or given back twice";
    EXPECT_EQ(found->second, bytes);
    live_.erase(found);
    freed_.push_back(data);
  }

  int calls() const { return calls_; }

 private:
  std::mutex mutex_;
  std::map<void*, size_t> live_;
  std::vector<void*> freed_;
  int calls_ = 0;
};

bool all_bytes_are(const void* data, size_t bytes, int value) {
  const auto* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) {
    if (p[i] != value) return false;
  }
  return true;
}

std::string out_of_memory_message(const std::function<void()>& run) {
  try {
    run();
  } catch (const c10::OutOfMemoryError& e) {
    return e.what_without_backtrace();
  }
  return "nothing was thrown";
}

// --- conformance ---

using Maker = std::function<std::unique_ptr<SizedAllocator>(SizedAllocator&)>;

class Conformance : public ::testing::TestWithParam<std::pair<std::string, Maker>> {
 protected:
  WatchedHeap heap_;
  std::unique_ptr<SizedAllocator> layer_ = GetParam().second(heap_);
};

TEST_P(Conformance, GivesAlignedDistinctWritableMemory) {
  std::mt19937 random(3);
  std::vector<std::pair<void*, size_t>> pieces;
  for (int i = 0; i < 300; ++i) {
    const size_t bytes = 1 + random() % 5000;
    void* data = layer_->allocate(bytes);
    ASSERT_NE(data, nullptr);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    std::memset(data, i % 251, bytes);
    pieces.emplace_back(data, bytes);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_TRUE(all_bytes_are(pieces[i].first, pieces[i].second, static_cast<int>(i % 251)));
    layer_->deallocate(pieces[i].first, pieces[i].second);
  }
}

TEST_P(Conformance, IsUnchangedByAFailureBelow) {
  FailingAllocator failing(heap_);
  TrackingAllocator count(failing);
  const std::unique_ptr<SizedAllocator> layer = GetParam().second(count);
  failing.fail_nth(2);
  void* data = layer->allocate(100);
  EXPECT_THROW(layer->allocate(1000), c10::OutOfMemoryError);
  EXPECT_EQ(count.current() % 64, 100 % 64);
  void* more = layer->allocate(1000);
  layer->deallocate(data, 100);
  layer->deallocate(more, 1000);
  EXPECT_EQ(count.current(), 0);
}

/// A `HeapAllocator` takes a c10 allocator; this one takes from a `SizedAllocator`, header and all.
class OverHeap final : public SizedAllocator {
 public:
  explicit OverHeap(SizedAllocator& below) : base_(below) {}
  void* allocate(size_t bytes) override { return heap_.allocate(bytes); }
  void deallocate(void* data, size_t bytes) noexcept override { heap_.deallocate(data, bytes); }

 private:
  struct Base final : c10::Allocator {
    explicit Base(SizedAllocator& below) : below_(below) {}
    c10::DataPtr allocate(size_t bytes) override {
      struct Ticket {
        SizedAllocator& from;
        void* data;
        size_t bytes;
      };
      void* data = below_.allocate(bytes);
      // a context that is not the data pointer: the header has to keep both
      return {data, new Ticket{below_, data, bytes},
              [](void* context) {
                auto* ticket = static_cast<Ticket*>(context);
                ticket->from.deallocate(ticket->data, ticket->bytes);
                delete ticket;
              },
              c10::Device(c10::DeviceType::CPU)};
    }
    void copy_data(void* dest, const void* src, size_t count) const override { default_copy_data(dest, src, count); }
    SizedAllocator& below_;
  };
  Base base_;
  HeapAllocator heap_{base_};
};

template <typename Layer>
std::pair<std::string, Maker> layer(const char* name) {
  return {name, [](SizedAllocator& below) { return std::make_unique<Layer>(below); }};
}

INSTANTIATE_TEST_SUITE_P(Layers, Conformance,
                         ::testing::Values(layer<OverHeap>("Heap"), layer<TrackingAllocator>("Tracking"),
                                           layer<LimitingAllocator>("Limiting"), layer<FailingAllocator>("Failing"),
                                           layer<PoisoningAllocator>("Poisoning")),
                         [](const auto& instance) { return instance.param.first; });

// --- each layer ---

TEST(HeapAllocator, RefusesSizesThatWouldWrapRound) {
  HeapAllocator heap(*c10::GetDefaultCPUAllocator());
  EXPECT_THROW(heap.allocate(SIZE_MAX), c10::OutOfMemoryError);
  EXPECT_THROW(heap.allocate(SIZE_MAX - 64), c10::OutOfMemoryError);
  EXPECT_THROW(heap.allocate(static_cast<size_t>(INT64_MAX)), c10::OutOfMemoryError);
}

TEST(TrackingAllocator, CountsBytesPeakAndAllocations) {
  WatchedHeap heap;
  TrackingAllocator tracking(heap);
  void* a = tracking.allocate(100);
  void* b = tracking.allocate(50);
  tracking.deallocate(a, 100);
  void* c = tracking.allocate(20);
  EXPECT_EQ(tracking.stats().current, 70);
  EXPECT_EQ(tracking.stats().peak, 150);
  EXPECT_EQ(tracking.stats().allocations, 3);
  tracking.reset_peak();
  EXPECT_EQ(tracking.stats().peak, 70);
  tracking.deallocate(b, 50);
  tracking.deallocate(c, 20);
  EXPECT_EQ(tracking.stats().current, 0);
  EXPECT_EQ(tracking.stats().peak, 70);
}

TEST(TrackingAllocator, WatchesOverlapAndCloseInAnyOrder) {
  WatchedHeap heap;
  TrackingAllocator tracking(heap);
  const auto pulse = [&](size_t bytes) { tracking.deallocate(tracking.allocate(bytes), bytes); };
  TrackingAllocator::Watch first;
  TrackingAllocator::Watch second;
  pulse(1000);
  tracking.open(first);
  pulse(10);
  tracking.open(second);
  pulse(30);
  tracking.close(first);
  pulse(70);
  tracking.close(second);
  pulse(500);
  EXPECT_EQ(first.peak.load(), 30);
  EXPECT_EQ(second.peak.load(), 70);
  EXPECT_EQ(second.first_allocation, 2);
}

TEST(LimitingAllocator, TakesTheLastByteAndNoMore) {
  WatchedHeap heap;
  LimitingAllocator limiting(heap);
  limiting.set_limit(100);
  EXPECT_THROW(limiting.allocate(101), c10::OutOfMemoryError);
  void* a = limiting.allocate(60);
  EXPECT_THROW(limiting.allocate(41), c10::OutOfMemoryError);
  EXPECT_EQ(limiting.in_use(), 60);
  EXPECT_EQ(heap.calls(), 1);
  void* b = limiting.allocate(40);
  limiting.deallocate(a, 60);
  void* c = limiting.allocate(60);
  limiting.deallocate(b, 40);
  limiting.deallocate(c, 60);
  EXPECT_EQ(limiting.in_use(), 0);
}

TEST(LimitingAllocator, ALimitBelowUseWaitsForFrees) {
  WatchedHeap heap;
  LimitingAllocator limiting(heap);
  void* a = limiting.allocate(100);
  EXPECT_EQ(limiting.set_limit(50), LimitingAllocator::kNoLimit);
  EXPECT_THROW(limiting.allocate(1), c10::OutOfMemoryError);
  limiting.deallocate(a, 100);
  limiting.deallocate(limiting.allocate(50), 50);
}

TEST(LimitingAllocator, MessageNamesRequestUseAndLimit) {
  WatchedHeap heap;
  LimitingAllocator limiting(heap);
  void* a = limiting.allocate(512);
  limiting.set_limit(2048);
  const std::string expected =
      "[refrain::memory] out of memory: requested 1048576 bytes (1.0 MiB), in use 512 bytes, limit 2048 bytes (2.0 KiB); ";
  const std::string message = out_of_memory_message([&] { limiting.allocate(1_MiB); });
  EXPECT_EQ(message.substr(0, expected.size()), expected);
  EXPECT_NE(
      out_of_memory_message([&] { limiting.allocate(SIZE_MAX); }).find("requested 18446744073709551615 bytes, in use"),
      std::string::npos);
  limiting.deallocate(a, 512);
}

TEST(FailingAllocator, FailsTheChosenOneOnce) {
  WatchedHeap heap;
  FailingAllocator failing(heap);
  const auto pulse = [&] { failing.deallocate(failing.allocate(8), 8); };
  failing.fail_nth(3);
  pulse();
  pulse();
  EXPECT_FALSE(failing.fired());
  EXPECT_THROW(failing.allocate(8), c10::OutOfMemoryError);
  EXPECT_TRUE(failing.fired());
  for (int i = 0; i < 5; ++i) pulse();
  failing.fail_nth(1);
  EXPECT_FALSE(failing.fired());
  failing.fail_nth(0);
  pulse();
  EXPECT_FALSE(failing.fired());
}

TEST(PoisoningAllocator, FillsNewAndFreedMemoryWhileOn) {
  WatchedHeap heap;
  PoisoningAllocator poisoning(heap);
  void* plain = poisoning.allocate(100);
  EXPECT_TRUE(all_bytes_are(plain, 100, 0x11));
  poisoning.set_on(true);
  void* data = poisoning.allocate(100);
  EXPECT_TRUE(all_bytes_are(data, 100, 0xCB));
  std::memset(data, 1, 100);
  poisoning.deallocate(data, 100);
  EXPECT_TRUE(all_bytes_are(data, 100, 0xDD));
  poisoning.set_on(false);
  poisoning.deallocate(plain, 100);
  EXPECT_TRUE(all_bytes_are(plain, 100, 0x11));
}

class TorchAllocatorTest : public ::testing::Test {
 protected:
  HeapAllocator heap_{*c10::GetDefaultCPUAllocator()};
  TrackingAllocator tracking_{heap_};
  TorchAllocator torch_{tracking_};
};

TEST_F(TorchAllocatorTest, FreesThroughTheStack) {
  {
    const c10::DataPtr data = torch_.allocate(1000);
    EXPECT_EQ(data.get(), data.get_context());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data.get()) % 64, 0u);
    EXPECT_TRUE(data.device().is_cpu());
    EXPECT_TRUE(torch_.is_simple_data_ptr(data));
    EXPECT_EQ(Block::of(data.get()).bytes, 1000u);
    EXPECT_EQ(tracking_.current(), 1000);
  }
  EXPECT_EQ(tracking_.current(), 0);
}

TEST_F(TorchAllocatorTest, RawInterfaceWorks) {
  void* data = torch_.raw_allocate(1000);
  std::memset(data, 1, 1000);
  EXPECT_EQ(tracking_.current(), 1000);
  torch_.raw_deallocate(data);
  torch_.raw_deallocate(torch_.raw_allocate(0));
  EXPECT_EQ(tracking_.current(), 0);
}

TEST_F(TorchAllocatorTest, CloneCopies) {
  const c10::DataPtr data = torch_.allocate(64);
  std::memset(data.get(), 42, 64);
  const c10::DataPtr copy = torch_.clone(data.get(), 64);
  EXPECT_NE(copy.get(), data.get());
  EXPECT_TRUE(all_bytes_are(copy.get(), 64, 42));
}

TEST_F(TorchAllocatorTest, ZeroBytesAreNull) {
  const c10::DataPtr data = torch_.allocate(0);
  EXPECT_EQ(data.get(), nullptr);
  EXPECT_EQ(tracking_.allocations(), 0);
}

}  // namespace
}  // namespace refrain
