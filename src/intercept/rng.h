#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <memory>
#include <mutex>
#include <vector>

#include "base/ordered_mutex.h"

namespace refrain::tape {

/// State of a generator just before a random operator ran: a base that neighbouring operators share, and the few words in
/// which it differs. (A CPU generator's 5 KB are rewritten only every 624 draws; in between two words move.)
struct RngState {
  struct Patch {
    uint32_t offset = 0;  ///< bytes
    uint64_t word = 0;
  };
  at::Generator generator;
  at::Tensor base;
  std::vector<Patch> patches;

  at::Tensor state() const;
  /// Sets the generator to this state. Needs `rng_mutex`.
  void set() const;
};

/// The process's mutex around {read the state, run the operator} and {set the state, replay, restore}. Locked before
/// the tape's own lock, never after it.
OrderedMutex& rng_mutex();

/// Finds the generator an operator call would draw from: an explicit generator argument, else the default one of the
/// device of its first tensor or device argument. Undefined if that device has none.
at::Generator generator_of(const torch::jit::Stack& stack, size_t num_args);

/// Reads the state; shares its base with the last one read on this thread where they are close. Needs `rng_mutex`.
std::shared_ptr<const RngState> read_rng(const at::Generator& generator);

/// Whether the generator's state differs from `before`. Needs `rng_mutex`.
bool has_moved(const RngState& before);

/// Sets a recorded state for one replayed operator and restores the present one. Holds `rng_mutex` meanwhile.
class RngReplayScope {
 public:
  explicit RngReplayScope(const RngState& recorded);
  ~RngReplayScope();
  RngReplayScope(const RngReplayScope&) = delete;
  RngReplayScope& operator=(const RngReplayScope&) = delete;

 private:
  std::unique_lock<OrderedMutex> lock_;
  at::Generator generator_;
  at::Tensor present_;
};

}  // namespace refrain::tape
