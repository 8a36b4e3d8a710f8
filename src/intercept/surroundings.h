#pragma once

#include <ATen/ThreadLocalState.h>
#include <c10/core/DeviceGuard.h>

#include <optional>
#include <vector>

#include "intercept/ambient.h"

namespace refrain::tape {

/// What a function of the user's may look at besides its arguments, as it was at one moment on one thread: thread-local state
/// (dispatch keys, grad mode, autocast with its dtypes), autocast's cache switch, the default dtype and the current device; and the
/// switches of the process, as for operators. Random generators: `Draws`.
class Surroundings {
 public:
  /// This thread, now.
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

/// A default dtype while it lives. LibTorch has one for the process: scopes with another one on other threads wait for each other,
/// scopes with the same do not.
class DefaultDtypeScope {
 public:
  explicit DefaultDtypeScope(at::ScalarType dtype);
  ~DefaultDtypeScope();
  DefaultDtypeScope(const DefaultDtypeScope&) = delete;
  DefaultDtypeScope& operator=(const DefaultDtypeScope&) = delete;

 private:
  std::optional<at::ScalarType> inner_before_;  ///< set inside another scope of this thread
};

/// Puts them in force on this thread, and the present ones back when destroyed. @throws CheckpointError if another switch of the process than
/// the default dtype has changed.
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
