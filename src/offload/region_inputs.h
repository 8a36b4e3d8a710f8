#pragma once

#include <memory>

#include "tape/region_work.h"
#include "tape/saver.h"
#include "tape/tape.h"

namespace refrain::tape {

/// Parks a tensor among the arguments of `region`, which has `work`, before the function runs: operators that read it
/// hold no memory. Not parked: parameters and their views, results of the same outermost region, discarded outputs,
/// borrowed bytes, tensors without a plain storage.
void add_input(Region* region, const at::Tensor& tensor);

/// Slot of a tensor that is parked, or will be.
class Parked;
void store_parked(Parked& parked, RegionWork& work);

/// Decides when tensors that autograd saves are stored.
class ParkingWatch {
 public:
  virtual void packed(std::shared_ptr<Parked> parked, const at::Tensor& tensor) = 0;

 protected:
  ~ParkingWatch() = default;
};

/// Makes hooks that park the tensor that autograd saves; one that must not be parked is kept. `work` must live until
/// then, and `watch`, which decides when; null: at once.
std::unique_ptr<torch::autograd::SavedVariableHooks> parking_hooks(RegionWork& work, ParkingWatch* watch = nullptr);

/// Parks tensors that autograd saves on this thread while alive. For the arguments that a rerun region keeps; inside
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

}  // namespace refrain::tape
