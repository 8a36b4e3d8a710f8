#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "refrain/memory.h"

namespace refrain {
namespace {

at::Tensor& freed_after_main() {
  static at::Tensor tensor;
  return tensor;
}

// One test: its steps are the life of the process, before, during and after installation.
TEST(MemoryInstall, TakesOverARunningProcess) {
  EXPECT_FALSE(memory_tracking_installed());
  EXPECT_EQ(memory_stats().current, 0);
  reset_peak_memory();
  EXPECT_FALSE(memory_tracking_installed());

  at::Tensor freed_later = at::ones({1000});
  at::Tensor grown_later = at::ones({1000});
  EXPECT_EQ(memory_stats().allocations, 0);

  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([] { install_memory_tracking(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(memory_tracking_installed());
  EXPECT_EQ(memory_stats().current, 0);

  freed_later.reset();
  EXPECT_EQ(memory_stats().current, 0);
  grown_later.resize_({5000});
  EXPECT_EQ(grown_later.slice(0, 0, 1000).sum().item<float>(), 1000.f);
  grown_later.reset();
  EXPECT_EQ(memory_stats().current, 0);

  freed_after_main() = at::ones({10});
  EXPECT_EQ(memory_stats().current, 40);
  install_memory_tracking();
  EXPECT_EQ(memory_stats().current, 40);
}

}  // namespace
}  // namespace refrain
