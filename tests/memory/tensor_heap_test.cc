#include "memory/tensor_heap.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <thread>
#include <vector>

#include "memory/process_memory.h"
#include "refrain/memory.h"
#include "refrain/memory_budget.h"
#include "refrain/memory_cap.h"

namespace refrain {
namespace {

at::Tensor touched(Bytes n) { return at::ones({n}, at::kByte); }

/// A step of 40 layers of 4 MiB; its gradient.
at::Tensor run_step() {
  auto x = at::ones({1_MiB}, at::kFloat).requires_grad_(true);
  auto y = x;
  for (int i = 0; i < 40; ++i) y = (y * 1.01).sin();
  y.sum().backward();
  return x.grad().clone();
}

class TensorHeapTest : public testing::Test {
 protected:
  void SetUp() override {
    install_memory_tracking();
    if (tensor_heap() == "malloc") GTEST_SKIP() << "no heap here";
    release_free_memory();
  }
};

TEST_F(TensorHeapTest, ServesLargeTensorsAndKeepsWhatIsFreed) {
  const auto before = memory_stats();
  {
    const auto tensor = touched(8_MiB);
    EXPECT_GE(memory_stats().heap_held, before.heap_held + 8_MiB);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 64, 0U);
  }
  EXPECT_GE(memory_stats().heap_free, 8_MiB);
  release_free_memory();
  EXPECT_LT(memory_stats().heap_free, 1_MiB);
  EXPECT_LT(memory_stats().heap_held, before.heap_held + 1_MiB);
}

TEST_F(TensorHeapTest, SmallTensorsStayWithMalloc) {
  const auto before = memory_stats();
  std::vector<at::Tensor> small;
  for (int i = 0; i < 1000; ++i) small.push_back(touched(16_KiB));
  EXPECT_EQ(memory_stats().heap_held, before.heap_held);
}

// What malloc keeps of blocks of mixed sizes makes the resident bytes exceed a limit by half.
TEST_F(TensorHeapTest, HoldsNoMoreThanTheLimit) {
  const Bytes limit = memory_stats().current + 64_MiB;
  const MemoryLimit kept(limit);
  const Bytes resident = resident_now() - memory_stats().heap_held;
  std::mt19937 random(1);
  std::vector<at::Tensor> alive;
  Bytes pages = 0;  // at most, for what is before each tensor's bytes and to a whole page
  Bytes highest = 0;
  for (int i = 0; i < 3000; ++i) {
    const Bytes size = static_cast<Bytes>(32_KiB << (random() % 8)) + static_cast<Bytes>(random() % 5000);
    while (memory_stats().current + size > limit)
      alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(random() % alive.size()));
    alive.push_back(touched(size));
    pages = std::max(pages, static_cast<Bytes>(alive.size()) * (4_KiB + 64));
    const Bytes most = TensorHeap::most_held(limit + pages, true);
    highest = std::max(highest, memory_stats().heap_held);
    ASSERT_LE(memory_stats().heap_held, most) << i;
    ASSERT_LE(resident_now(), resident + most + 4_MiB) << i;
  }
  EXPECT_GT(highest, TensorHeap::most_held(limit + pages, false));  // nearly each tensor made pages go and come
}

TEST_F(TensorHeapTest, HoldsLessWhereFewPagesGoAndCome) {
  release_free_memory();
  const Bytes limit = memory_stats().current + 80_MiB;
  const MemoryLimit kept(limit);
  for (int step = 0; step < 50; ++step) {
    std::vector<at::Tensor> alive;
    for (int i = 0; i < 64; ++i) alive.push_back(touched(1_MiB));
    if (step % 25 == 24) {  // holes that the next ones do not fit in
      for (int i = 0; i < 64; i += 2) alive[static_cast<size_t>(i)].reset();
      for (int i = 0; i < 16; ++i) alive.push_back(touched(2_MiB));
    }
    ASSERT_LE(memory_stats().heap_held, TensorHeap::most_held(limit + 1_MiB, false)) << step;
  }
}

TEST_F(TensorHeapTest, FreedPagesServeTheNextTensors) {
  touched(64_MiB);
  const Bytes held = memory_stats().heap_held;
  const MemoryLimit limit(memory_stats().current + 200_MiB);
  for (int i = 0; i < 100; ++i) touched(60_MiB + i);
  EXPECT_EQ(memory_stats().heap_held, held);
}

TEST_F(TensorHeapTest, RefusesWhatTheSystemHasNot) {
  EXPECT_THROW(at::empty({Bytes{1} << 50}, at::kByte), c10::OutOfMemoryError);
  EXPECT_EQ(touched(1_MiB).sum(at::kLong).item<int64_t>(), 1_MiB);
}

TEST_F(TensorHeapTest, ChildrenOfThreadsThatAllocateCanAllocate) {
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      std::vector<at::Tensor> kept(16);
      while (!done.load()) {
        kept[random() % kept.size()] = at::empty({static_cast<Bytes>(32_KiB + random() % 1_MiB)}, at::kByte);
        if (random() % 64 == 0) release_free_memory();
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      for (int k = 0; k < 20; ++k) at::empty({1_MiB + k * 10'000}, at::kByte);
      release_free_memory();
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "child " << i << ": " << status;
  }
  done.store(true);
  for (auto& thread : threads) thread.join();
}

TEST_F(TensorHeapTest, ProcessLimitIsKeptByGivingBackAndThenRefuses) {
  touched(100_MiB);  // stays in the heap, free
  const Bytes base = resident_now() - memory_stats().heap_free;
  const Bytes limit = base + 80_MiB;
  const MemoryLimit kept(Budget::process(limit));
  reset_peak_memory();
  std::vector<at::Tensor> alive;
  for (int i = 0; i < 12; ++i) alive.push_back(touched(4_MiB));
  try {
    for (int i = 0; i < 100; ++i) alive.push_back(touched(4_MiB));
    FAIL() << "the limit was not kept";
  } catch (const OutOfMemory& error) {
    EXPECT_NE(std::string(error.what()).find("limit of the process " + std::to_string(limit)), std::string::npos)
        << error.what();
    EXPECT_EQ(error.limit(), limit);
    EXPECT_GT(error.min_limit(), limit);
    EXPECT_LE(error.min_limit(), limit + 16_MiB);
  }
  EXPECT_LE(memory_stats().resident_peak, limit);
  EXPECT_GT(memory_stats().resident_peak, limit - 32_MiB);  // and it is used
  alive.clear();
  touched(40_MiB);
}

TEST_F(TensorHeapTest, ProcessLimitIsKeptByEvicting) {
  release_free_memory();
  const Bytes limit = resident_now() + 80_MiB;
  at::Tensor limited;
  {
    const MemoryCap cap(Budget::process(limit));
    reset_peak_memory();
    limited = run_step();
    EXPECT_GT(cap.stats().evictions, 0);
    EXPECT_EQ(cap.stats().process_limit, limit);
    EXPECT_LE(memory_stats().resident_peak, limit);
  }
  reset_peak_memory();
  EXPECT_TRUE(at::equal(limited, run_step()));
  EXPECT_GT(memory_stats().resident_peak, limit);  // without the cap it takes more
}

TEST_F(TensorHeapTest, ABudgetOfTheProcessIsPlannedForAndKept) {
  release_free_memory();
  const Bytes limit = resident_now() + 80_MiB;
  const auto expected = run_step();
  release_free_memory();
  {
    MemoryBudget budget(Budget::process(limit));
    reset_peak_memory();
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(run_step(), expected)) << i;
    EXPECT_EQ(budget.stats().traced_steps, 1);
    EXPECT_EQ(budget.stats().planned_steps, 3);
    EXPECT_EQ(budget.stats().mismatched_steps, 0) << budget.stats().first_mismatch;
    EXPECT_LE(memory_stats().resident_peak, limit);
  }
  EXPECT_THROW(MemoryBudget(Budget::process(20_MiB)), c10::OutOfMemoryError);
}

TEST_F(TensorHeapTest, RoundsAsItSays) {
  for (const Bytes size : {33_KiB, 100_KiB, 129_KiB, 300_KiB, 1_MiB + 1}) {
    release_free_memory();
    const Bytes before = memory_stats().heap_held;
    std::vector<at::Tensor> alive;
    for (int i = 0; i < 200; ++i) alive.push_back(at::empty({size}, at::kByte));
    const auto grown = static_cast<double>(memory_stats().heap_held - memory_stats().heap_free - before);
    const auto expected =
        200.0 * static_cast<double>(TensorHeap::rounded(size + 64));  // what is before a tensor's bytes
    EXPECT_EQ(grown, expected) << size;
  }
}

TEST_F(TensorHeapTest, ProcessLimitBelowTheBaseSaysByHowMuch) {
  try {
    const MemoryLimit limit(Budget::process(20_MiB));
    FAIL();
  } catch (const c10::OutOfMemoryError& error) {
    EXPECT_NE(std::string(error.what()).find("are missing before anything runs"), std::string::npos) << error.what();
  }
  touched(1_MiB);  // no limit is left behind
}

TEST_F(TensorHeapTest, LimitsOfBothKindsNest) {
  const MemoryLimit bytes(memory_stats().current + 10_MiB);
  const MemoryLimit process(Budget::process(resident_now() + 1_GiB));
  EXPECT_THROW(touched(11_MiB), c10::OutOfMemoryError);
  EXPECT_NO_THROW(touched(9_MiB));
}

}  // namespace
}  // namespace refrain
