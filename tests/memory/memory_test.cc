#include "refrain/memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "memory/testing.h"
#include "refrain/error.h"
#include "refrain/refusal.h"

namespace refrain {
namespace {

at::Tensor bytes(Bytes n) { return at::empty({n}, at::kByte); }

Bytes current() { return memory_stats().current; }

class Memory : public ::testing::Test {
 protected:
  void SetUp() override { install_memory_tracking(); }
  void TearDown() override {
    memory_testing::fail_nth_allocation(0);
    memory_testing::set_poison(false);
  }
};

TEST_F(Memory, CountsRequestedBytes) {
  const Bytes before = current();
  const int64_t allocations = memory_stats().allocations;
  {
    const at::Tensor a = at::empty({3, 5}, at::kFloat);
    EXPECT_EQ(current() - before, 60);
    const at::Tensor b = bytes(1);
    EXPECT_EQ(current() - before, 61);
    const at::Tensor view = a.view({15});
    EXPECT_EQ(current() - before, 61);
  }
  EXPECT_EQ(current(), before);
  EXPECT_EQ(memory_stats().allocations - allocations, 2);
}

TEST_F(Memory, EmptyTensorsCostNothing) {
  const MemoryStats before = memory_stats();
  const at::Tensor empty = at::empty({0});
  EXPECT_EQ(empty.data_ptr(), nullptr);
  EXPECT_EQ(memory_stats().current, before.current);
  EXPECT_EQ(memory_stats().allocations, before.allocations);
}

TEST_F(Memory, GrowingATensorMovesItsBytes) {
  const Bytes before = current();
  at::Tensor t = at::arange(10, at::kByte);
  t.resize_({1000});
  EXPECT_EQ(current() - before, 1000);
  EXPECT_TRUE(t.slice(0, 0, 10).equal(at::arange(10, at::kByte)));
}

TEST_F(Memory, PeakIsTheHighestSinceReset) {
  reset_peak_memory();
  const Bytes before = current();
  EXPECT_EQ(memory_stats().peak, before);
  bytes(5000);
  EXPECT_EQ(memory_stats().peak - before, 5000);
  bytes(100);
  EXPECT_EQ(memory_stats().peak - before, 5000);
  reset_peak_memory();
  EXPECT_EQ(memory_stats().peak, current());
}

TEST_F(Memory, ScopeMeasuresFromItsStart) {
  const at::Tensor outside = bytes(4096);
  const MemoryScope scope;
  EXPECT_EQ(scope.current(), 0);
  EXPECT_EQ(scope.peak(), 0);
  EXPECT_EQ(scope.allocations(), 0);
  const at::Tensor kept = bytes(100);
  bytes(1000);
  EXPECT_EQ(scope.current(), 100);
  EXPECT_EQ(scope.peak(), 1100);
  EXPECT_EQ(scope.allocations(), 2);
}

TEST_F(Memory, ScopeFallsBelowItsStartButItsPeakDoesNot) {
  at::Tensor outside = bytes(4096);
  const MemoryScope scope;
  outside.reset();
  EXPECT_EQ(scope.current(), -4096);
  bytes(1000);
  EXPECT_EQ(scope.peak(), 0);
}

TEST_F(Memory, ScopesNest) {
  const MemoryScope outer;
  bytes(1000);
  const at::Tensor kept = bytes(200);
  {
    const MemoryScope inner;
    bytes(300);
    EXPECT_EQ(inner.peak(), 300);
    EXPECT_EQ(outer.peak(), 1000);
    {
      const MemoryScope innermost;
      bytes(2000);
      EXPECT_EQ(innermost.peak(), 2000);
    }
    EXPECT_EQ(inner.peak(), 2000);
  }
  EXPECT_EQ(outer.peak(), 2200);
}

TEST_F(Memory, ResettingThePeakDoesNotTouchScopes) {
  const MemoryScope scope;
  bytes(1000);
  reset_peak_memory();
  EXPECT_EQ(scope.peak(), 1000);
  bytes(10);
  EXPECT_EQ(scope.peak(), 1000);
  EXPECT_EQ(memory_stats().peak, current() + 10);
}

TEST_F(Memory, ScopesDoNotTouchThePeak) {
  reset_peak_memory();
  const Bytes before = current();
  bytes(1000);
  { const MemoryScope scope; }
  EXPECT_EQ(memory_stats().peak - before, 1000);
}

TEST_F(Memory, LimitLetsTheLastByteThrough) {
  const MemoryLimit limit(current() + 1000);
  EXPECT_THROW(bytes(1001), c10::OutOfMemoryError);
  const at::Tensor all = bytes(1000);
  EXPECT_THROW(bytes(1), c10::OutOfMemoryError);
  EXPECT_NO_THROW(at::empty({0}));
}

TEST_F(Memory, RefusedAllocationChangesNothing) {
  reset_peak_memory();
  const MemoryStats before = memory_stats();
  const MemoryLimit limit(before.current + 1000);
  EXPECT_THROW(bytes(5000), c10::OutOfMemoryError);
  EXPECT_EQ(memory_stats().current, before.current);
  EXPECT_EQ(memory_stats().peak, before.peak);
  EXPECT_EQ(memory_stats().allocations, before.allocations);
}

TEST_F(Memory, RefusalNamesTheNumbers) {
  const Bytes used = current();
  const MemoryLimit limit(used + 1000);
  try {
    bytes(3 * 1024 * 1024);
    FAIL() << "nothing was thrown";
  } catch (const c10::OutOfMemoryError& e) {
    const std::string message = e.what();
    EXPECT_NE(message.find("requested 3145728 bytes (3.0 MiB)"), std::string::npos) << message;
    EXPECT_NE(message.find("in use " + std::to_string(used) + " bytes"), std::string::npos) << message;
    EXPECT_NE(message.find("limit " + std::to_string(used + 1000) + " bytes"), std::string::npos) << message;
  }
}

TEST_F(Memory, SmallestLimitHoldsInAnyOrderOfDestruction) {
  const Bytes base = current();
  auto wide = std::make_unique<MemoryLimit>(base + 3000);
  auto narrow = std::make_unique<MemoryLimit>(base + 1000);
  const auto wider = std::make_unique<MemoryLimit>(base + 4000);
  EXPECT_THROW(bytes(1001), c10::OutOfMemoryError);
  wide.reset();
  EXPECT_THROW(bytes(1001), c10::OutOfMemoryError);
  narrow.reset();
  EXPECT_NO_THROW(bytes(4000));
  EXPECT_THROW(bytes(4001), c10::OutOfMemoryError);
}

TEST_F(Memory, LimitEndsWithItsScope) {
  {
    const MemoryLimit limit(0);
    EXPECT_THROW(bytes(1), c10::OutOfMemoryError);
  }
  EXPECT_NO_THROW(bytes(1_MiB));
}

TEST_F(Memory, NegativeLimitIsRefused) {
  EXPECT_THROW(MemoryLimit(-1), InvalidArgument);
  EXPECT_NO_THROW(bytes(1));
}

TEST_F(Memory, OperatorsKeepTheirResultsUnderALimit) {
  const at::Tensor a = at::rand({64, 64});
  const at::Tensor expected = a.mm(a).relu();
  const MemoryLimit limit(current() + 2 * 64 * 64 * 4);
  EXPECT_TRUE(a.mm(a).relu().equal(expected));
  EXPECT_THROW(a.repeat({3, 1}), c10::OutOfMemoryError);
  EXPECT_TRUE(a.mm(a).relu().equal(expected));
}

TEST_F(Memory, ChosenAllocationFailsOnce) {
  const Bytes before = current();
  memory_testing::fail_nth_allocation(2);
  const at::Tensor a = bytes(10);
  EXPECT_FALSE(memory_testing::failure_fired());
  EXPECT_THROW(bytes(10), c10::OutOfMemoryError);
  EXPECT_TRUE(memory_testing::failure_fired());
  EXPECT_NO_THROW(bytes(10));
  EXPECT_EQ(current() - before, 10);
}

TEST_F(Memory, FailureLeavesTheLimitsAccountRight) {
  const MemoryLimit limit(current() + 1000);
  memory_testing::fail_nth_allocation(1);
  EXPECT_THROW(bytes(1000), c10::OutOfMemoryError);
  EXPECT_NO_THROW(bytes(1000));
}

std::string message_of_refused(Bytes n) {
  try {
    bytes(n);
  } catch (const OutOfMemory& error) {
    return error.what();
  }
  return "";
}

TEST_F(Memory, RefusalIsFoundByItsText) {
  const Bytes before = current();
  const MemoryLimit limit(before + 1000);
  const std::string text = message_of_refused(2000), other = message_of_refused(3000);
  const auto found = find_refusal("as another language has it: " + text);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->message, text);
  EXPECT_EQ(found->reason, OutOfMemoryReason::kMemoryLimit);
  EXPECT_EQ(found->numbers.requested, 2000);
  EXPECT_EQ(found->numbers.in_use, before);
  EXPECT_EQ(found->numbers.limit, before + 1000);
  EXPECT_EQ(found->numbers.min_limit, before + 2000);
  EXPECT_EQ(find_refusal()->message, other);
  EXPECT_EQ(find_refusal()->number, found->number + 1);
  EXPECT_FALSE(find_refusal("out of memory"));
  std::thread([&] { EXPECT_FALSE(find_refusal(text)); }).join();
}

TEST_F(Memory, SixteenRefusalsAreKept) {
  const MemoryLimit limit(current() + 1000);
  std::vector<std::string> texts;
  for (Bytes n = 2000; n < 2017; ++n) texts.push_back(message_of_refused(n));
  EXPECT_FALSE(find_refusal(texts[0]));
  EXPECT_EQ(find_refusal(texts[1])->numbers.requested, 2001);
  EXPECT_EQ(find_refusal(texts[16])->numbers.requested, 2016);
}

TEST_F(Memory, PoisonFillsNewTensors) {
  memory_testing::set_poison(true);
  EXPECT_TRUE(bytes(1000).eq(0xCB).all().item<bool>());
  EXPECT_TRUE(at::zeros({1000}, at::kByte).eq(0).all().item<bool>());
}

}  // namespace
}  // namespace refrain
