#include "refrain/memory_tracker.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "refrain/error.h"
#include "refrain/memory.h"

namespace refrain {
namespace {

at::Tensor bytes(Bytes n) { return at::empty({n}, at::kByte); }

TEST(MemoryTracker, SnapshotsAndPeak) {
  MemoryTracker tracker;
  const Bytes base = tracker.current();
  EXPECT_EQ(base, memory_stats().current);
  const auto kept = bytes(1000);
  EXPECT_EQ(tracker.snapshot("made"), base + 1000);
  bytes(5000);
  EXPECT_EQ(tracker.snapshot("after"), base + 1000);
  EXPECT_EQ(tracker.peak(), base + 6000);
  ASSERT_EQ(tracker.snapshots().size(), 2u);
  EXPECT_EQ(tracker.snapshots()[0].label, "made");
  tracker.reset();
  EXPECT_TRUE(tracker.snapshots().empty());
  EXPECT_EQ(tracker.peak(), base + 1000);
}

TEST(MemoryTracker, TrackersDoNotDisturbEachOther) {
  MemoryTracker outer;
  const Bytes base = outer.current();
  bytes(5000);
  {
    MemoryTracker inner;
    inner.reset();
    EXPECT_EQ(inner.peak(), base);
  }
  reset_peak_memory();
  EXPECT_EQ(outer.peak(), base + 5000);
}

TEST(MemoryTracker, Reports) {
  MemoryTracker tracker;
  tracker.snapshot("begin");
  const auto kept = bytes(2048);
  tracker.snapshot("a \"label\" \xff");
  const auto text = tracker.report();
  EXPECT_NE(text.find("+2.0 KiB"), std::string::npos) << text;
  EXPECT_NE(text.find("\npeak"), std::string::npos) << text;
  const auto json = nlohmann::json::parse(tracker.json());
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_EQ(json["snapshots"][1]["label"], "a \"label\" ?");
  EXPECT_EQ(json["snapshots"][1]["bytes"], tracker.current());
  EXPECT_EQ(json["peak_bytes"], tracker.peak());
}

TEST(MemoryTracker, ScopeCallsBackAtItsEnd) {
  std::optional<TrackedMemory> outer, inner;
  const Bytes base = MemoryTracker().current();
  at::Tensor kept;
  {
    const auto a = track_memory("outer", [&](const TrackedMemory& seen) { outer = seen; });
    bytes(700);
    {
      const auto b = track_memory("inner", [&](const TrackedMemory& seen) { inner = seen; });
      kept = bytes(100);
      bytes(50);
    }
    EXPECT_FALSE(outer);
  }
  ASSERT_TRUE(outer && inner);
  EXPECT_EQ(inner->label, "inner");
  EXPECT_EQ(inner->before, base);
  EXPECT_EQ(inner->after, base + 100);
  EXPECT_EQ(inner->peak, base + 150);
  EXPECT_EQ(outer->peak, base + 700);
  const auto c = track_memory("nobody listens", nullptr);
}

TEST(MemoryTracker, DevicesThatAreNotThere) {
  EXPECT_THROW(MemoryTracker(c10::Device("meta")), InvalidArgument);
  try {
    MemoryTracker tracker(c10::Device("cuda:99"));
    FAIL() << "nothing was thrown";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("`cuda:99`"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace refrain
