#pragma once

#include <memory>

#include "tape/region_work.h"
#include "tape/saver.h"
#include "tape/tape.h"

namespace refrain::tape {

/// A tensor among the arguments of `region`, which has `work`: its value is parked before the function runs, and
/// whatever reads it holds no memory. Left alone: parameters and their views, what the same outermost region computes,
/// discarded outputs, borrowed bytes, tensors without a plain storage.
void add_input(Region* region, const at::Tensor& tensor);

/// What autograd keeps of a tensor that is parked, or is to be.
class Parked;
void store_parked(Parked& parked, RegionWork& work);

/// Decides when what autograd saves is stored.
class ParkingWatch {
 public:
  virtual void packed(std::shared_ptr<Parked> parked, const at::Tensor& tensor) = 0;

 protected:
  ~ParkingWatch() = default;
};

/// Parks the tensor that autograd saves with them; one that must be left alone is kept. `work` must live until then, and `watch`,
/// which decides when unless it is null: then at once.
std::unique_ptr<torch::autograd::SavedVariableHooks> parking_hooks(RegionWork& work, ParkingWatch* watch = nullptr);

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

}  // namespace refrain::tape
