#pragma once

#include <torch/csrc/autograd/saved_variable_hooks.h>

#include "tape/tape.h"

namespace refrain::tape {

/// Object that autograd keeps instead of a tensor: a value, the view of it, and the version it was packed at.
class Slot : public torch::autograd::SavedVariableHooks {
 public:
  explicit Slot(Region* r) : region(r) {}

  // Guarded by the tape's lock.
  Value* value = nullptr;    ///< owned; null if `kept` is set
  Region* region = nullptr;  ///< owned
  bool holds = false;
  c10::Storage filled;     ///< recomputed bytes, not yet read
  int32_t read_task = -2;  ///< graph task that read it last
  c10::VariableVersion counter;
  uint32_t version = 0;
  uint32_t filled_at = 0;  ///< version at `fill`
  ListLink<Slot> in_value;
  ListLink<Slot> in_region;

  bool version_bumped() const { return counter.enabled() && counter.current_version() != version; }
  void attach(TapeLock& lock, Value* to, bool holding);
  void detach(TapeLock& lock);
  const TensorMeta& meta() const { return meta_; }  ///< if `value` is set
  /// Returns the tensor itself if `value` is null: without a plain storage, or over borrowed memory, which backward
  /// reads as it is then.
  const at::Tensor& kept() const { return kept_; }
  /// Takes bytes that a replay pass made for it.
  void fill(c10::Storage bytes) {
    filled = std::move(bytes);
    filled_at = counter.enabled() ? counter.current_version() : 0;
  }

 protected:
  void remember_version(const at::Tensor& tensor);
  TensorMeta meta_;
  at::Tensor kept_;
};

/// Throws CheckpointError: a tensor that autograd saved at `version` was changed since.
[[noreturn]] void throw_modified(const c10::VariableVersion& counter, uint32_t version);

}  // namespace refrain::tape
