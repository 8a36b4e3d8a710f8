#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "refrain/api.h"
#include "refrain/budget.h"
#include "refrain/bytes.h"
#include "refrain/torch_error.h"

namespace refrain {

/// Which tensors are evicted first.
///
/// `c` is the time to recompute a value, including its evicted ancestors, `m` its bytes, `s` how many operators ago it
/// was last used.
enum class EvictionHeuristic {
  kHDtr,     ///< least c / (m s). Source: Kirisame et al., "Dynamic Tensor Rematerialization", ICLR 2021, h_DTR without
             ///< the neighbourhood of evicted dependents, which brought nothing here
  kLru,      ///< largest s
  kLargest,  ///< largest m
  kMsps,     ///< least c / m. Source: Peng et al., "Capuchin", ASPLOS 2020
};

/// How a `MemoryCap` works. Setters chain: `MemoryCapOptions().heuristic(EvictionHeuristic::kLru)`.
class MemoryCapOptions {
 public:
  /// Sets which tensors are evicted first. Default: kHDtr.
  ///
  /// All but kHDtr are for comparison: they recompute far more.
  MemoryCapOptions& heuristic(EvictionHeuristic value) {
    heuristic_ = value;
    return *this;
  }
  EvictionHeuristic heuristic() const { return heuristic_; }

  /// Keeps values of fewer bytes resident: evicting them brings little. Default: 512.
  /// @param value  bytes >= 0.
  MemoryCapOptions& min_bytes(Bytes value) {
    min_bytes_ = value;
    return *this;
  }
  Bytes min_bytes() const { return min_bytes_; }

  /// Bounds the time that a step, to the end of backward, may spend recomputing. Default: no bound.
  ///
  /// Beyond it an operator throws `OutOfMemory` that names the smallest limit that would have sufficed so far.
  /// @param value  as a fraction of the time of the step's operators, > 0.
  MemoryCapOptions& max_overhead(double value) {
    max_overhead_ = value;
    return *this;
  }
  double max_overhead() const { return max_overhead_; }

  /// Sets whether to record also where nothing will be evicted. Default: false.
  ///
  /// Else, after three steps or more that evicted nothing, and left a third of the limit and three quarters of what they
  /// rise free, steps run without being recorded, at the cost of steps without a cap, until one rises a quarter above
  /// all of them. From there on it is recorded; what it made before cannot be evicted. So a step that needs several
  /// times what those before it did may be refused where a cap that always records would have made room.
  MemoryCapOptions& always_record(bool value) {
    always_record_ = value;
    return *this;
  }
  bool always_record() const { return always_record_; }

 private:
  EvictionHeuristic heuristic_ = EvictionHeuristic::kHDtr;
  Bytes min_bytes_ = 512;
  double max_overhead_ = std::numeric_limits<double>::infinity();
  bool always_record_ = false;
};

/// Counts what all caps of the process did since the first of those alive began.
struct MemoryCapStats {
  Bytes limit = 0;               ///< in force, of tensors' bytes
  Bytes process_limit = 0;       ///< in force, of resident bytes; the largest number if there is none
  int64_t evictions = 0;         ///< number of them
  Bytes evicted_bytes = 0;       ///< of all evictions together
  int64_t recomputes = 0;        ///< operators recomputed
  double recompute_ms = 0;       ///< time of those operators
  double policy_ms = 0;          ///< time spent choosing what to evict
  int64_t unrecorded_steps = 0;  ///< that ran with room to spare, see `MemoryCapOptions::always_record`
};

/// Keeps the bytes of CPU tensors at or below a limit while alive, by evicting tensors that can be recomputed and
/// recomputing them when they are read. Results are those of the baseline, to the bit.
///
///     refrain::MemoryCap cap(2_GiB);
///     for (auto& batch : loader) { ... forward, backward, optimizer step, unchanged ... }
///
/// - Tensors are evicted before an allocation would exceed the limit, and recomputed when an operator reads them.
/// - Forward, backward and everything else that runs on this thread is recorded.
/// - Tensors that no recorded operator made (parameters, inputs) and gradients of parameters are never evicted.
/// - `checkpoint` regions inside work; what they keep is not evicted.
/// - The next operator may invalidate raw data pointers. `data_ptr()` of an evicted tensor throws an error that names
///   the cause; hold a `PinScope`.
/// - Caps nest: the smallest limit holds, with the options of the innermost.
/// - At the end of the last cap all evicted tensors are recomputed.
/// Cost: 1 to 4 us an operator; less in a cache that is warm. 0.1 us in steps with room to spare, which are not recorded
/// (`MemoryCapOptions::always_record`).
/// Threads: the limit holds for other threads too. Their operators are recorded only in a `CapThreadScope` or with a
/// cap of their own; else an evicted tensor is an error there.
class REFRAIN_API MemoryCap {
 public:
  /// Limits the bytes of tensors.
  /// @param limit  bytes >= 0, absolute, as `memory_stats().current`.
  /// @throws InvalidArgument  if `limit` or `min_bytes` is negative, or `max_overhead` not above 0.
  explicit MemoryCap(Bytes limit, const MemoryCapOptions& options = {});

  /// Limits what `budget` counts: the bytes of tensors, or with `Budget::process` and `Budget::available` the resident
  /// bytes of the process.
  /// @throws InvalidArgument  also if `budget` is a `Budget::fraction`.
  /// @throws  also what a `MemoryLimit` of the budget throws.
  explicit MemoryCap(Budget budget, const MemoryCapOptions& options = {});
  ~MemoryCap();
  MemoryCap(const MemoryCap&) = delete;
  MemoryCap& operator=(const MemoryCap&) = delete;

  [[nodiscard]] MemoryCapStats stats() const;

  /// Keeps the bytes of `tensor` resident and in place while its storage lives. Recomputes them first if evicted.
  void pin(const at::Tensor& tensor);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Keeps the bytes of tensors resident while alive, so that raw pointers to them stay valid.
///
///     { refrain::PinScope pin(module->parameters()); torch::save(module, "model.pt"); }
///
/// - For `const_data_ptr`, for `torch::save` of what an operator made under the cap, and for threads that are not under
///   it.
/// - Without a cap it does nothing.
class REFRAIN_API PinScope {
 public:
  /// Makes the tensors resident first. Undefined tensors are ignored.
  /// @throws  as an operator would that reads the tensors.
  [[nodiscard]] explicit PinScope(at::Tensor tensor);
  [[nodiscard]] explicit PinScope(std::vector<at::Tensor> tensors);
  ~PinScope();
  PinScope(const PinScope&) = delete;
  PinScope& operator=(const PinScope&) = delete;

 private:
  std::vector<at::Tensor> tensors_;
};

/// Runs operators of this thread under the caps that are open, while alive, as those of the thread that made them do:
/// they are recorded, and what they read is made resident.
///
/// - For worker threads (loaders, environments) that read or write tensors made under a cap; without it an evicted
///   tensor is an error on them.
/// - No effect if no cap is open when it is made.
/// Cost: as `MemoryCap`'s, an operator.
/// Threads: destroyed on the thread that made it.
class REFRAIN_API CapThreadScope {
 public:
  [[nodiscard]] CapThreadScope();
  ~CapThreadScope();
  CapThreadScope(const CapThreadScope&) = delete;
  CapThreadScope& operator=(const CapThreadScope&) = delete;

 private:
  bool joined_ = false;
};

}  // namespace refrain
