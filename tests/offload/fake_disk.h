#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "offload/store.h"
#include "refrain/offload.h"

namespace refrain_test {

/// A disk in memory that does what a test wants. For one store, which it outlives.
class FakeDisk {
 public:
  /// All of them may be set at any time.
  std::atomic<int64_t> room{INT64_MAX};                           ///< beyond it ENOSPC
  std::atomic<bool> fails_to_write{false}, fails_to_read{false};  ///< EIO
  std::atomic<bool> ends_early{false};                            ///< as a file that something has cut
  std::atomic<bool> flips_bits{false};                            ///< of what is read
  std::atomic<bool> in_pieces{false};                             ///< reads and writes 1000 bytes at a time
  std::atomic<int64_t> reads{0}, writes{0};
  std::atomic<double> ms_per_access{0};

  void hold_writes() {
    std::lock_guard lock(mutex_);
    held_ = true;
  }
  void let_writes_go() {
    std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  void flip_a_bit(int64_t at) {
    std::lock_guard lock(mutex_);
    bytes_.at(static_cast<size_t>(at)) ^= 4;
  }

  std::unique_ptr<refrain::offload::BlockDevice> device() { return std::make_unique<Device>(*this); }
  refrain::OffloadStore store(refrain::OffloadOptions options = {}) {
    return refrain::OffloadStore(refrain::offload::make_disk_store(options, device()));
  }

 private:
  class Device final : public refrain::offload::BlockDevice {
   public:
    explicit Device(FakeDisk& disk) : disk_(disk) {}
    void grow(int64_t size) override {
      if (size > disk_.room) fail(ENOSPC);
      std::lock_guard lock(disk_.mutex_);
      disk_.bytes_.resize(static_cast<size_t>(size));
    }
    size_t write(const char* bytes, size_t nbytes, int64_t offset) override {
      disk_.take_time();
      std::unique_lock lock(disk_.mutex_);
      disk_.changed_.wait(lock, [&] { return !disk_.held_; });
      if (disk_.fails_to_write) fail(EIO);
      ++disk_.writes;
      nbytes = disk_.piece(nbytes);
      std::memcpy(disk_.bytes_.data() + offset, bytes, nbytes);
      return nbytes;
    }
    size_t read(char* bytes, size_t nbytes, int64_t offset) override {
      disk_.take_time();
      std::lock_guard lock(disk_.mutex_);
      if (disk_.fails_to_read) fail(EIO);
      ++disk_.reads;
      nbytes = disk_.piece(nbytes);
      if (disk_.ends_early) nbytes = static_cast<size_t>(std::max<int64_t>(0, std::min<int64_t>(nbytes, 100 - offset)));
      std::memcpy(bytes, disk_.bytes_.data() + offset, nbytes);
      if (disk_.flips_bits) bytes[nbytes / 2] ^= 1;
      return nbytes;
    }
    std::string name() const override { return "the fake disk"; }

   private:
    [[noreturn]] static void fail(int error) { throw std::system_error(error, std::generic_category()); }
    FakeDisk& disk_;
  };

  size_t piece(size_t nbytes) const { return in_pieces ? std::min<size_t>(nbytes, 1000) : nbytes; }
  void take_time() const { std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(ms_per_access)); }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<char> bytes_;
  bool held_ = false;
};

}  // namespace refrain_test
