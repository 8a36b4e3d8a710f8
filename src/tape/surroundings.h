#pragma once

#include <ATen/ThreadLocalState.h>
#include <c10/core/DeviceGuard.h>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "tape/ambient.h"
#include "tape/rng.h"

namespace refrain::tape {

/// What a function of the user's may look at besides its arguments, as it was at one moment on one thread: thread-local state
/// (dispatch keys, grad mode, autocast with its dtypes), autocast's cache switch, the default dtype, the current device, and
/// the state of random generators; and the switches of the process, as for operators.
class Surroundings {
 public:
  /// This thread, now, without generators.
  Surroundings();
  /// The default generators of the CPU and of every accelerator in use. Cost: 5 KB, about 1 us.
  void add_default_generators();
  void add_generator(const at::Generator& generator);
  bool autocast() const { return autocast_; }

 private:
  friend class SurroundingsScope;
  at::ThreadLocalState thread_;
  std::vector<at::ScalarType> autocast_dtypes_;
  bool autocast_ = false;
  bool autocast_cache_ = true;
  at::ScalarType default_dtype_;
  std::optional<at::Device> device_;
  const Ambient ambient_ = Ambient::now();
  std::vector<std::shared_ptr<const RngState>> generators_;
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
  void put(const Surroundings& what);

  const Surroundings now_;
  at::ThreadLocalStateGuard thread_;
  ArithmeticScope arithmetic_;
  c10::OptionalDeviceGuard device_;
  std::vector<RngState> generators_now_;
  bool autocast_;
};

}  // namespace refrain::tape
