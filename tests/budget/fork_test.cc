#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/budget/cap_support.h"

/// A forked child, as a data loader makes them: it has no cap, and nobody's lock.
namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::MemoryBudget;
using refrain::MemoryCap;
using refrain::MemoryLimit;

constexpr Bytes kMiB = Bytes{1} << 20;

/// What the child that runs `work` exits with: 0 if it gives true, 1 if not, 2 after an exception, -1 if it hangs for `seconds` or dies.
int in_child(const std::function<bool()>& work, unsigned seconds = 60) {
  const auto child = fork();
  if (child == 0) {
    alarm(seconds);
    at::set_num_threads(1);  // the threads of OpenMP have not come along
    int code = 2;
    try {
      code = work() && !::testing::Test::HasFailure() ? 0 : 1;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in the child: %s\n", error.what());
    }
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Bytes current() { return refrain::memory_stats().current; }

// Half a megabyte a tensor. @return whether all were in memory at once.
bool takes(Bytes bytes) {
  const Bytes before = current();
  Tensors all;
  for (Bytes taken = 0; taken < bytes; taken += kMiB / 2) all.push_back(torch::ones({kMiB / 8}).add_(1));
  const bool has_all = current() - before >= bytes;
  for (const auto& each : all) EXPECT_EQ(each.sum().item<float>(), 2 * kMiB / 8);
  return has_all;
}

class Fork : public TapeTest {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    refrain::install_memory_tracking();
    TapeTest::SetUp();
  }
};

TEST_F(Fork, AChildTakesMoreThanTheParentMay) {
  const MemoryCap cap(current() + 4 * kMiB);
  EXPECT_EQ(in_child([] { return takes(16 * kMiB); }), 0);
  EXPECT_FALSE(takes(16 * kMiB));
  EXPECT_GT(cap.stats().evictions, 0);
}

TEST_F(Fork, AChildOfALimitAndOfABudgetTakesMore) {
  {
    const MemoryLimit limit(current() + 4 * kMiB);
    EXPECT_EQ(in_child([] { return takes(16 * kMiB); }), 0);
    EXPECT_THROW(takes(16 * kMiB), c10::OutOfMemoryError);
  }
  const MemoryBudget budget(refrain::Budget::bytes(current() + 4 * kMiB));
  EXPECT_EQ(in_child([] { return takes(16 * kMiB); }), 0);
}

TEST_F(Fork, AChildHasItsOwnCapAndBudget) {
  const MemoryBudget budget(refrain::Budget::bytes(current() + 64 * kMiB));
  const auto step = [] {
    const auto x = torch::randn({256, 256}).requires_grad_();
    x.exp().sin().exp().sin().sum().backward();
  };
  step();
  EXPECT_EQ(in_child([&] {
              {
                const MemoryCap cap(current() + 2 * kMiB);
                step();
                if (cap.stats().limit != current() + 2 * kMiB && cap.stats().evictions == 0) return false;
              }
              const MemoryBudget own(refrain::Budget::bytes(current() + 64 * kMiB));
              return takes(kMiB);
            }),
            0);
  step();
}

TEST_F(Fork, WhatIsEvictedIsThereInTheChild) {
  const MemoryCap cap(kNoLimit);
  const auto y = torch::arange(2048, torch::kFloat).div(100).exp();
  const auto want = bits_of(y);
  evict_all();
  EXPECT_EQ(in_child([&] { return bits_of(y) == want && takes(8 * kMiB); }), 0);
  EXPECT_TRUE(bits_of(y) == want);
}

TEST_F(Fork, TheParentsScopesEndInTheChild) {
  EXPECT_EQ(in_child([] {
              auto cap = std::make_unique<MemoryCap>(current() + 4 * kMiB);
              const auto y = torch::ones({1024}).exp();
              return in_child([&] {
                       cap.reset();
                       return takes(16 * kMiB) && y.sum().item<float>() > 0;
                     }) == 0;
            }),
            0);
}

// The other thread holds a lock of ours nearly all of the time.
TEST_F(Fork, NoLockIsHeldInTheChild) {
  const MemoryCap outer(kNoLimit);
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    const MemoryCap cap(kNoLimit);
    while (!stop) {
      const auto x = torch::dropout(torch::rand({16}), 0.5, true);
      if (x.numel() != 16) return;
      refrain::tape_stats();
    }
  });
  int failed = 0;
  for (int i = 0; i < 200 && failed == 0; ++i)
    failed += in_child(
                  [] {
                    const MemoryCap cap(current() + kMiB);
                    const MemoryLimit limit(current() + kMiB);
                    const auto x = torch::dropout(torch::rand({16}), 0.5, true).exp();
                    return x.numel() == 16;
                  },
                  10) != 0;
  stop = true;
  worker.join();
  EXPECT_EQ(failed, 0);
}

}  // namespace
}  // namespace refrain_test
