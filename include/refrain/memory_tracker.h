#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/bytes.h"

/// Memory of a device at chosen moments. CPU: what `memory_stats` counts, from the first tracker or scope on.
/// Accelerators: the requested bytes that LibTorch's caching allocator has in use, not what it holds back for reuse.
namespace refrain {

/// One level that a `MemoryTracker` noted.
struct MemorySnapshot {
  std::string label;
  Bytes bytes = 0;  ///< allocated at that moment
};

/// Notes levels with labels, and the peak.
///
/// Cost: a snapshot is some atomic reads; on CPU an allocation takes a mutex while a tracker is alive.
/// Threads: one tracker is for one thread; its numbers are those of all threads.
class REFRAIN_API MemoryTracker {
 public:
  /// Begins to track a device.
  /// @param device  without an index: the current one of its type.
  /// @throws InvalidArgument  if LibTorch has no memory statistics for it here.
  explicit MemoryTracker(c10::Device device = c10::DeviceType::CPU);
  ~MemoryTracker();
  MemoryTracker(const MemoryTracker&) = delete;
  MemoryTracker& operator=(const MemoryTracker&) = delete;

  /// Notes the level.
  ///
  /// On an accelerator allocations count when they are asked for: no need to wait for kernels.
  /// @return the level, in bytes.
  Bytes snapshot(std::string label = "");

  /// Drops the snapshots and begins the peak anew. On an accelerator also resets LibTorch's own peak statistics.
  void reset();

  [[nodiscard]] Bytes current() const;  ///< level now, in bytes

  /// @return highest level since construction or `reset`, in bytes. On an accelerator also since anybody else's reset
  ///         of LibTorch's statistics.
  [[nodiscard]] Bytes peak() const;

  const std::vector<MemorySnapshot>& snapshots() const { return snapshots_; }

  /// Writes a line for each snapshot with its change, and one for the peak. Ends in a line break.
  [[nodiscard]] std::string report() const;

  /// Writes {"device": "cpu", "snapshots": [{"label", "bytes"}], "current_bytes", "peak_bytes"}.
  [[nodiscard]] std::string json() const;

 private:
  struct Source;
  std::unique_ptr<Source> source_;
  std::vector<MemorySnapshot> snapshots_;
};

/// The result of a `track_memory` scope, in bytes of its device.
struct TrackedMemory {
  std::string label;
  Bytes before = 0;  ///< level at its begin
  Bytes after = 0;   ///< level at its end
  Bytes peak = 0;    ///< highest level in between
};

/// Calls `done` at its end. Made by `track_memory`.
class REFRAIN_API TrackedMemoryScope {
 public:
  [[nodiscard]] TrackedMemoryScope(std::string label, std::function<void(const TrackedMemory&)> done,
                                   c10::Device device);
  ~TrackedMemoryScope();
  TrackedMemoryScope(const TrackedMemoryScope&) = delete;
  TrackedMemoryScope& operator=(const TrackedMemoryScope&) = delete;

 private:
  MemoryTracker tracker_;
  TrackedMemory seen_;
  std::function<void(const TrackedMemory&)> done_;
};

/// Measures until the returned scope ends, then calls `done`, on the thread that ends it.
///
/// On CPU scopes nest and do not disturb each other; on an accelerator an inner one resets the outer one's peak.
/// @param done    must not throw.
/// @param device  as of a `MemoryTracker`.
/// @throws InvalidArgument  as a `MemoryTracker` of the device.
[[nodiscard]] inline TrackedMemoryScope track_memory(std::string label, std::function<void(const TrackedMemory&)> done,
                                                     c10::Device device = c10::DeviceType::CPU) {
  return {std::move(label), std::move(done), device};
}

}  // namespace refrain
