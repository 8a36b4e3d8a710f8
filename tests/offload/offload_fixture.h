#pragma once

#include <gtest/gtest.h>

#include "refrain/memory.h"
#include "tests/offload/fake_disk.h"
#include "tests/tape/support.h"

namespace refrain_test {

/// A store on a disk in memory, in which nothing may be left at the end.
struct OffloadTest : TapeTest {
  explicit OffloadTest(const refrain::OffloadOptions& options) : store(disk.store(options)) {}
  void SetUp() override {
    TapeTest::SetUp();
    refrain::install_memory_tracking();
  }
  void TearDown() override {
    TapeTest::TearDown();
    store.flush();
    EXPECT_EQ(store.stats().stored_bytes, 0) << "offloaded bytes that nobody needs";
  }
  FakeDisk disk;
  refrain::OffloadStore store;
};

}  // namespace refrain_test
