#pragma once

#include <torch/csrc/autograd/saved_variable_hooks.h>

#include "tape/tape.h"

namespace refrain::tape {

/// What autograd keeps instead of a tensor: a value, the view of it, and the version it was packed at.
class Slot : public torch::autograd::SavedVariableHooks {
 public:
  /// @param region the innermost open one of this thread; the slot joins it when it packs. Null outside regions: it joins that
  ///        of a discarded output, and keeps any other tensor as it is.
  explicit Slot(Region* region);
  ~Slot() override;
  void call_pack_hook(const at::Tensor& tensor) override;
  at::Tensor call_unpack_hook() override;

  // Guarded by the tape's lock.
  Value* value = nullptr;      ///< owned; null if `kept` is set
  Region* region = nullptr;    ///< owned
  bool holds = false;
  c10::Storage filled;         ///< bytes brought back and not yet read
  int32_t read_task = -2;      ///< graph task that read it last
  c10::VariableVersion counter;
  uint32_t version = 0;
  uint32_t filled_at = 0;      ///< version at `fill`
  ListLink<Slot> in_value;
  ListLink<Slot> in_region;

  bool version_bumped() const { return counter.enabled() && counter.current_version() != version; }
  void attach(TapeLock& lock, Value* to, bool holding);
  void detach(TapeLock& lock);
  const TensorMeta& meta() const { return meta_; }  ///< if `value` is set
  const at::Tensor& kept() const { return kept_; }  ///< else
  /// Bytes that a replay pass made for it.
  void fill(c10::Storage bytes) {
    filled = std::move(bytes);
    filled_at = counter.enabled() ? counter.current_version() : 0;
  }

 protected:
  void remember_version(const at::Tensor& tensor);
  TensorMeta meta_;

 private:
  void join(TapeLock& lock);
  /// Whether `filled` is as the pass left it, as far as the version tells: backward may write into what it has unpacked, on any thread.
  bool filled_is_whole() const { return !counter.enabled() || counter.current_version() == filled_at; }

  bool joined_ = false;        ///< its region knows it
  at::Tensor kept_;            ///< tensors without a plain storage, and over borrowed memory: backward reads what is there then
};

/// A tensor that autograd saved, at `version`, was changed since. @throws CheckpointError
[[noreturn]] void throw_modified(const c10::VariableVersion& counter, uint32_t version);

}  // namespace refrain::tape
