#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "memory/testing.h"
#include "refrain/memory.h"

namespace refrain {
namespace {

constexpr int kThreads = 8;

at::Tensor bytes(Bytes n) { return at::empty({n}, at::kByte); }

void in_threads(const std::function<void(int)>& run) {
  std::atomic<int> waiting{kThreads};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      waiting.fetch_sub(1);
      while (waiting.load() > 0) std::this_thread::yield();
      run(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(MemoryThreads, NothingIsLostOrCountedTwice) {
  const MemoryScope scope;
  std::vector<at::Tensor> kept(kThreads);
  in_threads([&](int i) {
    std::mt19937 random(static_cast<unsigned>(i));
    for (int k = 0; k < 3000; ++k) kept[static_cast<size_t>(i)] = bytes(1 + random() % 10'000);
    kept[static_cast<size_t>(i)] = bytes(1000 + i);
  });
  EXPECT_EQ(scope.current(), 1000 * kThreads + kThreads * (kThreads - 1) / 2);
  EXPECT_EQ(scope.allocations(), 3001 * kThreads);
  kept.clear();
  EXPECT_EQ(scope.current(), 0);
}

TEST(MemoryThreads, LimitIsNeverExceeded) {
  install_memory_tracking();
  constexpr Bytes kRoom = 100'000;
  reset_peak_memory();
  const Bytes base = memory_stats().current;
  std::atomic<int64_t> given{0};
  std::atomic<int64_t> refused{0};
  {
    const MemoryScope scope;
    const MemoryLimit limit(base + kRoom);
    in_threads([&](int i) {
      std::mt19937 random(static_cast<unsigned>(i));
      std::vector<at::Tensor> kept;
      for (int k = 0; k < 2000; ++k) {
        try {
          kept.push_back(bytes(1 + random() % 5'000));
          ++given;
        } catch (const c10::OutOfMemoryError&) {
          ++refused;
          kept.resize(kept.size() / 2);
        }
      }
    });
    EXPECT_LE(scope.peak(), kRoom);
  }
  EXPECT_LE(memory_stats().peak, base + kRoom);
  EXPECT_EQ(memory_stats().current, base);
  EXPECT_GT(given.load(), 1000);
  EXPECT_GT(refused.load(), 0);
}

TEST(MemoryThreads, RoomForOneIsGivenToOne) {
  install_memory_tracking();
  for (int round = 0; round < 30; ++round) {
    const MemoryLimit limit(memory_stats().current + 1000);
    std::atomic<int> given{0};
    std::vector<at::Tensor> kept(kThreads);
    in_threads([&](int i) {
      try {
        kept[static_cast<size_t>(i)] = bytes(600);
        ++given;
      } catch (const c10::OutOfMemoryError&) {
      }
    });
    EXPECT_EQ(given.load(), 1);
  }
}

TEST(MemoryThreads, ScopesAndLimitsMayComeAndGoAnywhere) {
  install_memory_tracking();
  const Bytes base = memory_stats().current;
  in_threads([&](int i) {
    for (int k = 0; k < 500; ++k) {
      const MemoryScope scope;
      const MemoryLimit limit(base + 100_MiB + i);
      const at::Tensor mine = bytes(1000);
      EXPECT_GE(scope.peak(), 0);
      EXPECT_GE(scope.allocations(), 1);
      if (k % 7 == 0) reset_peak_memory();
    }
  });
  EXPECT_EQ(memory_stats().current, base);
  const at::Tensor large = bytes(101_MiB);
}

TEST(MemoryThreads, FreedByAnotherThread) {
  const MemoryScope scope;
  std::vector<at::Tensor> made;
  std::thread([&] {
    for (int i = 0; i < 100; ++i) made.push_back(bytes(100));
  }).join();
  EXPECT_EQ(scope.current(), 10'000);
  std::thread([&] { made.clear(); }).join();
  EXPECT_EQ(scope.current(), 0);
  EXPECT_EQ(scope.peak(), 10'000);
}

TEST(MemoryThreads, ChosenAllocationFailsInOneThreadOnly) {
  memory_testing::fail_nth_allocation(kThreads * 50);
  std::atomic<int> failures{0};
  in_threads([&](int) {
    for (int k = 0; k < 100; ++k) {
      try {
        bytes(10);
      } catch (const c10::OutOfMemoryError&) {
        ++failures;
      }
    }
  });
  EXPECT_EQ(failures.load(), 1);
  EXPECT_TRUE(memory_testing::failure_fired());
}

}  // namespace
}  // namespace refrain
