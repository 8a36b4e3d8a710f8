#pragma once

#include <c10/core/StorageImpl.h>

#include <functional>
#include <vector>

#include "intercept/version.h"
#include "tape/op_watch.h"

namespace refrain::tape {

/// Thrown through the user's function once everything is saved. Not a `std::exception`, so that fewer handlers stop it.
struct EarlyStop {};

/// Requests the next operator to stop a rerun before it runs. Not where autograd saves the last tensor: a custom
/// function that is stopped while it saves keeps itself alive.
struct StopRequest final : OpWatch {
  bool due = false;             ///< all that backward needs has been saved
  bool writing = false;         ///< an operator is writing a tensor saved before it ran, which is invalid if it throws
  int32_t graph_task = -1;      ///< of the backward that reruns the function
  const void* frame = nullptr;  ///< an address in the stack frame that an exception must reach
  /// Tensors saved before their operator ran, as `rrelu` saves the noise that it has yet to draw: the last operator's,
  /// by its number.
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> arguments;
  struct Raw {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    Version version;
  };
  /// Saved as they came from `empty`, and perhaps filled later in a way that moves no version. An operator that does
  /// move it finds them filled: autograd would not read what it writes.
  std::vector<Raw> raw;
  /// From `empty`, and no operator has written any of it.
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> fresh;
  uint64_t node = 0;              ///< of `arguments`
  std::function<void()> runs_on;  ///< or null; called if the function cannot be stopped once all is saved
  /// Or null; called once all is saved, before an operator overwrites the tensor and moves its version.
  std::function<void(const at::Tensor&)> overwrites;

  /// Called for each operator of the function. Throws `EarlyStop` through the function once all is saved, unless the
  /// operator may write a tensor saved before it ran, a backward inside the function is running (the engine would not
  /// survive that), or an exception would not get through: then the function runs on.
  void before(const OpTraits& op, const torch::jit::Stack& stack) override;
  void after(const OpTraits& op, const torch::jit::Stack& stack) override;

  /// Notes a tensor that backward needs. @param argument  of an operator that has not run yet.
  void saved(const at::Tensor& tensor, bool argument);
};

}  // namespace refrain::tape
