// The disk store by itself: order, waiting, what is served from memory, faults, reading ahead.
#include <iostream>
#include <map>
#include <random>
#include <thread>

#include "intercept/storage_copy.h"
#include "offload/store.h"
#include "refrain/memory.h"
#include "tests/offload/fake_disk.h"
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::Bytes;
using refrain::OffloadError;
using refrain::OffloadOptions;
using refrain::OffloadStore;
using Handle = std::shared_ptr<refrain::tape::Offloaded>;

constexpr Bytes kValue = 100000;

OffloadOptions all() { return OffloadOptions().min_bytes(0); }

/// `kValue` bytes that tell `number`.
c10::Storage value(int number) {
  auto storage = refrain::tape::raw_storage(kValue, c10::kCPU);
  std::memset(storage.mutable_data(), number, kValue);
  return storage;
}

void expect_value(const c10::Storage& storage, int number) {
  ASSERT_EQ(storage.nbytes(), static_cast<size_t>(kValue));
  const auto* bytes = static_cast<const char*>(storage.data());
  EXPECT_EQ(std::count(bytes, bytes + kValue, static_cast<char>(number)), kValue) << number;
}

std::vector<Handle> put(const OffloadStore& store, int count) {
  std::vector<Handle> handles;
  for (int i = 0; i < count; ++i) handles.push_back(store.get()->store(value(i)));
  return handles;
}

template <typename Condition>
void wait_until(const Condition& condition) {
  for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(condition());
}

struct DiskStore : testing::Test {
  void SetUp() override { refrain::install_memory_tracking(); }
  FakeDisk disk;
};

TEST_F(DiskStore, BytesLeaveMemoryAndComeBackAnyNumberOfTimes) {
  const auto store = disk.store(all().prefetch(0));
  refrain::MemoryScope memory;
  auto handles = put(store, 3);
  store.flush();
  EXPECT_EQ(memory.current(), 0);
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < 3; ++i) expect_value(handles[i]->fetch(), i);
  const auto stats = store.stats();
  EXPECT_EQ(stats.values, 3);
  EXPECT_EQ(stats.written_bytes, 3 * kValue);
  EXPECT_EQ(stats.read_bytes, 6 * kValue);
  EXPECT_EQ(stats.fetches, 6);
  EXPECT_EQ(stats.fetch_stalls, 6);
  EXPECT_EQ(stats.stored_bytes, 3 * 102400);
  handles.clear();
  EXPECT_EQ(store.stats().stored_bytes, 0);
  EXPECT_EQ(memory.current(), 0);
}

TEST_F(DiskStore, ASnapshotIsTaken) {
  const auto store = disk.store(all());
  disk.hold_writes();
  auto bytes = value(1);
  const auto handle = store.get()->store(bytes);
  std::memset(bytes.mutable_data(), 9, kValue);
  disk.let_writes_go();
  expect_value(handle->fetch(), 1);
  store.flush();
  expect_value(handle->fetch(), 1);
}

TEST_F(DiskStore, WhatIsNotWrittenYetIsServedFromMemory) {
  const auto store = disk.store(all());
  disk.hold_writes();
  auto handles = put(store, 3);
  for (int i = 0; i < 3; ++i) {
    const auto mine = handles[i]->fetch();
    std::memset(mine.mutable_data(), 77, kValue);
  }
  disk.let_writes_go();
  store.flush();
  EXPECT_EQ(disk.reads, 0);
  for (int i = 2; i >= 0; --i) expect_value(handles[i]->fetch(), i);
}

TEST_F(DiskStore, WhatDiesInTheQueueIsNeverWritten) {
  const auto store = disk.store(all());
  disk.hold_writes();
  auto handles = put(store, 4);
  wait_until([&] { return store.stats().in_flight_bytes == 4 * kValue; });
  handles.clear();
  disk.let_writes_go();
  store.flush();
  EXPECT_LE(disk.writes, 1) << "the writer had begun with the first";
  EXPECT_EQ(store.stats().stored_bytes, 0);
}

TEST_F(DiskStore, ForwardWaitsAtMaxInFlight) {
  const auto store = disk.store(all().max_in_flight(2 * kValue));
  disk.hold_writes();
  std::atomic<int> stored{0};
  std::vector<Handle> handles;
  std::thread forward([&] {
    for (int i = 0; i < 5; ++i) {
      handles.push_back(store.get()->store(value(i)));
      ++stored;
    }
  });
  wait_until([&] { return stored == 2; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(stored, 2);
  EXPECT_EQ(store.stats().in_flight_bytes, 2 * kValue);
  disk.let_writes_go();
  forward.join();
  EXPECT_GE(store.stats().store_stalls, 1);
  EXPECT_GT(store.stats().store_stall_ms, 10);
  for (int i = 4; i >= 0; --i) expect_value(handles[i]->fetch(), i);
}

TEST_F(DiskStore, ALargerValueIsWrittenWhileForwardWaitsAndNotCopied) {
  const auto store = disk.store(all().max_in_flight(0));
  const auto bytes = value(5);
  refrain::MemoryScope memory;
  const auto handle = store.get()->store(bytes);
  EXPECT_EQ(memory.peak(), 0);
  EXPECT_EQ(store.stats().in_flight_bytes, 0);
  expect_value(handle->fetch(), 5);
}

TEST_F(DiskStore, SmallValuesAndEmptyOnesAreDeclined) {
  const auto store = disk.store(OffloadOptions().min_bytes(kValue + 1));
  EXPECT_EQ(store.get()->store(value(1)), nullptr);
  EXPECT_EQ(disk.store(all()).get()->store(refrain::tape::raw_storage(0, c10::kCPU)), nullptr);
  EXPECT_EQ(store.stats().refused, 0);
}

TEST_F(DiskStore, AFullDiskDeclinesUntilThereIsRoomAgain) {
  disk.room = 2 * 102400;
  const auto store = disk.store(all());
  auto handles = put(store, 3);
  EXPECT_EQ(handles[2], nullptr);
  auto stats = store.stats();
  EXPECT_EQ(stats.refused, 1);
  EXPECT_EQ(stats.refused_bytes, kValue);
  EXPECT_NE(stats.problem.find("No space left on device"), std::string::npos) << stats.problem;
  handles[0].reset();
  store.flush();
  const auto later = store.get()->store(value(7));
  ASSERT_NE(later, nullptr);
  expect_value(later->fetch(), 7);
  expect_value(handles[1]->fetch(), 1);

  FakeDisk full;
  full.room = 0;
  EXPECT_THROW(put(full.store(all().strict(true)), 1), OffloadError);
}

TEST_F(DiskStore, AFailedWriteKeepsTheValueInMemory) {
  for (const Bytes in_flight : {10 * kValue, Bytes{0}}) {
    disk.fails_to_write = true;
    const auto store = disk.store(all().max_in_flight(in_flight));
    auto handles = put(store, 1);
    store.flush();
    disk.fails_to_write = false;
    EXPECT_EQ(handles[0] == nullptr, in_flight == 0) << "a value that forward waited for can stay where it is";
    if (handles[0]) {
      expect_value(handles[0]->fetch(), 0);
      expect_value(handles[0]->fetch(), 0);
    }
    EXPECT_EQ(store.stats().refused, 1);
    EXPECT_NE(store.stats().problem.find("Input/output error"), std::string::npos);
    handles.clear();
    EXPECT_EQ(store.stats().stored_bytes, 0);
  }
  disk.fails_to_write = true;
  const auto strict = disk.store(all().strict(true));
  const auto handle = strict.get()->store(value(1));
  EXPECT_THROW(strict.flush(), OffloadError);
  EXPECT_NO_THROW(strict.flush());
  EXPECT_THROW(disk.store(all().strict(true).max_in_flight(0)).get()->store(value(1)), OffloadError);
}

TEST_F(DiskStore, AFaultOfReadingAheadIsSeenByWhoeverFetches) {
  const auto store = disk.store(all());
  auto handles = put(store, 3);
  store.flush();
  disk.fails_to_read = true;
  for (int i = 2; i >= 0; --i) EXPECT_THROW(handles[i]->fetch(), OffloadError);
  EXPECT_NE(store.stats().problem.find("Input/output error"), std::string::npos);
  disk.fails_to_read = false;
  for (int i = 2; i >= 0; --i) expect_value(handles[i]->fetch(), i);
}

TEST_F(DiskStore, ReadsAheadWithinItsBytesAndLetsGoOfWrongGuesses) {
  const auto store = disk.store(all().prefetch(2 * kValue));
  auto handles = put(store, 8);
  store.flush();
  refrain::MemoryScope memory;
  handles[7]->fetch();
  wait_until([&] { return memory.current() == 2 * kValue; });  // 6 and 5
  handles[2]->fetch();
  wait_until([&] { return memory.current() == 2 * kValue && store.stats().read_bytes >= 6 * kValue; });  // 1 and 0
  expect_value(handles[1]->fetch(), 1);
  expect_value(handles[0]->fetch(), 0);
  EXPECT_EQ(store.stats().prefetched, 2);
  EXPECT_EQ(memory.current(), 0);
}

TEST_F(DiskStore, TheOrderOfTheLastStepIsLearned) {
  const auto store = disk.store(all().prefetch(kValue));
  const std::vector<int> order{2, 3, 0, 1};
  for (int step = 0; step < 2; ++step) {
    auto handles = put(store, 4);
    store.flush();
    store.reset_stats();
    for (const int i : order) {
      expect_value(handles[i]->fetch(), i);
      if (step == 0) continue;
      // the next one comes by itself
      const auto read = store.stats().fetches + (i == order.back() ? 0 : 1);
      wait_until([&] { return store.stats().read_bytes == read * kValue; });
    }
    EXPECT_TRUE(step == 0 || store.stats().prefetched == 3) << store.stats().prefetched;
  }
}

/// Backward of `count` values, each computed with for `compute_ms`. @returns the part of its time spent waiting.
double stalled(FakeDisk& disk, Bytes prefetch, int count, double compute_ms, double read_ms) {
  const auto store = disk.store(all().prefetch(prefetch));
  double part = 0;
  for (int step = 0; step < 2; ++step) {
    disk.ms_per_access = 0;
    auto handles = put(store, count);
    store.flush();
    store.reset_stats();
    disk.ms_per_access = read_ms;
    const auto start = std::chrono::steady_clock::now();
    for (int i = count - 1; i >= 0; --i) {
      handles[i]->fetch();
      std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(compute_ms));
    }
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    part = store.stats().fetch_stall_ms / took.count();
  }
  return part;
}

TEST_F(DiskStore, ReadingAheadHidesTheTransferOfADiskThatIsFastEnough) {
  // Both sides only sleep, and the disk is busy a third of the time. A loaded machine can but add to what is measured.
  const double without = stalled(disk, 0, 20, 15, 5);
  double with = 1;
  for (int attempt = 0; attempt < 5 && with >= 0.1; ++attempt)
    with = std::min(with, stalled(disk, 4 * kValue, 20, 15, 5));
  RecordProperty("stalled_without_prefetch", std::to_string(without));
  RecordProperty("stalled_with_prefetch", std::to_string(with));
  std::cout << "stalled without prefetch " << 100 * without << " %, with " << 100 * with << " %\n";
  EXPECT_GT(without, 0.2);
  EXPECT_LT(with, 0.1);
}

TEST_F(DiskStore, ManyThreadsAtOnce) {
  const auto store = disk.store(all().prefetch(3 * kValue).max_in_flight(3 * kValue).capacity(40 * 102400));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      std::map<int, Handle> mine;
      for (int i = 0; i < 400; ++i) {
        const int number = static_cast<int>(random() % 128);
        if (auto found = mine.find(number); found != mine.end()) {
          expect_value(found->second->fetch(), number);
          if (random() % 2) mine.erase(found);
        } else if (auto handle = store.get()->store(value(number))) {
          mine.emplace(number, handle);
          if (mine.size() > 12) mine.erase(mine.begin());
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  store.flush();
  EXPECT_EQ(store.stats().stored_bytes, 0);
  EXPECT_EQ(store.stats().in_flight_bytes, 0);
}

TEST_F(DiskStore, BadOptionsAreErrors) {
  EXPECT_EQ(message_of<refrain::InvalidArgument>([] { OffloadStore store(OffloadOptions().prefetch(-1)); }),
            "[refrain::offload] prefetch is -1, expected a number of bytes >= 0.");
  EXPECT_THROW(OffloadStore(OffloadOptions().compress(20)), refrain::InvalidArgument);
}

TEST_F(DiskStore, HostMemoryDeclinesWhatIsThereAlready) {
  EXPECT_EQ(OffloadStore(all()).get()->store(value(1)), nullptr);
}

}  // namespace
}  // namespace refrain_test
