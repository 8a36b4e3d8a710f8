#pragma once

#include <cstddef>
#include <memory>

#include "refrain/checkpoint.h"
#include "tape/offload.h"

namespace refrain {

namespace tape {

/// One region's part of `RegionInputs`. Called without the tape's lock, `recompute_*` on any thread.
class RegionWork {
 public:
  virtual ~RegionWork() = default;
  /// Adds an input of so many bytes to the region.
  virtual void add_input(size_t nbytes) = 0;
  /// Stores its bytes, unless they are in a store already. @returns null to decline: they stay where they are.
  virtual std::shared_ptr<Offloaded> store(const c10::Storage& bytes) = 0;
  virtual void forward_ended() noexcept = 0;
  virtual void recompute_started() = 0;
  virtual void recompute_ended() noexcept = 0;
};

/// Surrounds the replay of a region, or the rerun of its function. `work` may be null.
class RecomputeScope {
 public:
  explicit RecomputeScope(RegionWork* work) : work_(work) {
    if (work_) work_->recompute_started();
  }
  ~RecomputeScope() {
    if (work_) work_->recompute_ended();
  }
  RecomputeScope(const RecomputeScope&) = delete;
  RecomputeScope& operator=(const RecomputeScope&) = delete;

 private:
  RegionWork* work_;
};

}  // namespace tape

/// Strategy that `CheckpointOptions::input_storage` names.
class RegionInputs {
 public:
  virtual ~RegionInputs() = default;
  /// Begins a region with `options` on this thread.
  virtual std::shared_ptr<tape::RegionWork> open(const CheckpointOptions& options) = 0;
};

}  // namespace refrain
