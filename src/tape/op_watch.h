#pragma once

#include <ATen/core/stack.h>

#include <memory>

#include "intercept/op_traits.h"

namespace torch::autograd {
struct SavedVariableHooks;
}

namespace refrain::tape {

struct Region;
class Slot;

/// Observes the operators of one thread, around their run. Without the lock.
class OpWatch {
 public:
  /// @param stack  its arguments. An exception reaches the caller of the operator, which then does not run.
  virtual void before(const OpTraits& op, const torch::jit::Stack& stack) = 0;
  /// @param stack  its results.
  virtual void after(const OpTraits& op, const torch::jit::Stack& stack) = 0;

 protected:
  ~OpWatch() = default;
};

/// Holds saved arguments of an operator that may not have run yet, and waits for it.
class LateSaver {
 public:
  /// Another operator is about to run.
  virtual void begins() = 0;
  /// The operator whose arguments wait has returned. @param wrote  in place.
  virtual void returned(bool wrote) = 0;
  /// Stores them without waiting any longer.
  virtual void store_late() = 0;

 protected:
  ~LateSaver() = default;
};

/// Observes what one thread saves, while `saved_tensors` runs on it.
class SavedObserver {
 public:
  /// A region was opened. Under the tape's lock.
  virtual void opened(Region* region) = 0;
  virtual void packed(const Slot* slot, const at::Tensor& tensor) = 0;
  /// An operator that is not recorded has run. @param stack  its results.
  virtual void ran_effect(const OpTraits& op, const torch::jit::Stack& stack) = 0;
  /// Makes hooks for tensors that are saved outside of regions.
  virtual std::unique_ptr<torch::autograd::SavedVariableHooks> hooks() = 0;

 protected:
  ~SavedObserver() = default;
};

}  // namespace refrain::tape
