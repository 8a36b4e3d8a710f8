#pragma once

#include <ATen/ThreadLocalState.h>
#include <c10/core/DeviceGuard.h>

#include <optional>
#include <vector>

#include "intercept/ambient.h"

namespace refrain::tape {

/// State that a user's function may read besides its arguments, at one moment on one thread: thread-local state
/// (dispatch keys, grad mode, autocast with its dtypes), autocast's cache switch, the default dtype and the current
/// device; and the switches of the process, as for operators. Random generators: `Draws`.
class Surroundings {
 public:
  /// Reads the state of this thread.
  Surroundings();

 private:
  friend class SurroundingsScope;
  at::ThreadLocalState thread_;
  std::vector<at::ScalarType> autocast_dtypes_;
  bool autocast_ = false;
  bool autocast_cache_ = true;
  at::ScalarType default_dtype_;
  std::optional<at::Device> device_;
  const Ambient ambient_ = Ambient::now();
};

/// Sets a default dtype while alive. LibTorch has one for the process: scopes on other threads with another one wait
/// for each other, scopes with the same do not.
class DefaultDtypeScope {
 public:
  explicit DefaultDtypeScope(at::ScalarType dtype);
  ~DefaultDtypeScope();
  DefaultDtypeScope(const DefaultDtypeScope&) = delete;
  DefaultDtypeScope& operator=(const DefaultDtypeScope&) = delete;

 private:
  std::optional<at::ScalarType> inner_before_;  ///< set inside another scope of this thread
};

/// Sets recorded surroundings on this thread and restores the present ones when destroyed. @throws CheckpointError if a
/// switch of the process other than the default dtype has changed.
class SurroundingsScope {
 public:
  explicit SurroundingsScope(const Surroundings& then);
  ~SurroundingsScope();
  SurroundingsScope(const SurroundingsScope&) = delete;
  SurroundingsScope& operator=(const SurroundingsScope&) = delete;

 private:
  static void put(const Surroundings& what);

  const Surroundings now_;
  const DefaultDtypeScope dtype_;
  at::ThreadLocalStateGuard thread_;
  ArithmeticScope arithmetic_;
  c10::OptionalDeviceGuard device_;
  bool autocast_;
};

}  // namespace refrain::tape
