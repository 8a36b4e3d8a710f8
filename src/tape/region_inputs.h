#pragma once

#include "tape/tape.h"

namespace refrain {

namespace tape {

/// One region's part of what `RegionInputs` does. Called without the tape's lock, `recompute_*` on any thread.
class RegionWork {
 public:
  virtual ~RegionWork() = default;
  /// The region has an input of so many bytes.
  virtual void add_input(size_t nbytes) = 0;
  /// Its bytes, unless they are in a store already. @returns null to decline: they stay where they are.
  virtual std::shared_ptr<Offloaded> store(const c10::Storage& bytes) = 0;
  virtual void forward_ended() noexcept = 0;
  virtual void recompute_started() = 0;
  virtual void recompute_ended() noexcept = 0;
};

/// Around the replay of a region, or the second call of its function. `work` may be null.
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

/// A tensor among the arguments of `region`, which has `work`: its value is parked before the function runs, and
/// whatever reads it holds no memory. Left alone: parameters and their views, what the same outermost region computes,
/// discarded outputs, borrowed bytes, tensors without a plain storage.
void add_input(Region* region, const at::Tensor& tensor);

/// What autograd keeps of a tensor that is parked, or is to be.
class Parked;
void store_parked(Parked& parked, RegionWork& work);

/// Parks the tensor that autograd saves with them; one that must be left alone is kept. `work` must live until then, and `saver`,
/// which decides when unless it is null.
std::unique_ptr<torch::autograd::SavedVariableHooks> parking_hooks(RegionWork& work, OffloadingSaver* saver = nullptr);

/// While it lives, what autograd saves on this thread is parked. For the arguments that a rerun region keeps; inside
/// another region, which keeps places instead, it does nothing.
class ParkingScope final : public Saver {
 public:
  ParkingScope(RegionWork* work, const at::Tensor& tensor);
  ~ParkingScope();
  ParkingScope(const ParkingScope&) = delete;
  ParkingScope& operator=(const ParkingScope&) = delete;

  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() override;

 private:
  RegionWork* work_;  ///< null: does nothing
};

}  // namespace tape

/// What `CheckpointOptions::inputs` names.
class RegionInputs {
 public:
  virtual ~RegionInputs() = default;
  /// A region with `options` begins on this thread.
  virtual std::shared_ptr<tape::RegionWork> open(const CheckpointOptions& options) = 0;
};

}  // namespace refrain
