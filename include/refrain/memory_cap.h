#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>
#include <string>

#include "refrain/budget.h"
#include "refrain/bytes.h"

namespace refrain {

/// What leaves memory first. `c` is the time to compute a value again with all that is not in memory behind it, `m` its
/// bytes, `s` how many operators ago it was last used.
enum class EvictionHeuristic {
  kHDtr,     ///< least c / (m s). Source: Kirisame et al., "Dynamic Tensor Rematerialization", ICLR 2021, h_DTR without the
             ///< neighbourhood of evicted dependents, which brought nothing here
  kLru,      ///< largest s
  kLargest,  ///< largest m
  kMsps,     ///< least c / m. Source: Peng et al., "Capuchin", ASPLOS 2020
};

/// How a `MemoryCap` works. Setters chain: `MemoryCapOptions().heuristic(EvictionHeuristic::kLru)`.
class MemoryCapOptions {
 public:
  /// Default: kHDtr. All but kHDtr are for comparison: they compute again far more.
  MemoryCapOptions& heuristic(EvictionHeuristic value) {
    heuristic_ = value;
    return *this;
  }
  EvictionHeuristic heuristic() const { return heuristic_; }

  /// Values of fewer bytes stay: they bring little. Default: 512.
  MemoryCapOptions& min_bytes(Bytes value) {
    min_bytes_ = value;
    return *this;
  }
  Bytes min_bytes() const { return min_bytes_; }

  /// Most time that a step, to the end of backward, may spend computing again, as a part of that of its operators; beyond it an
  /// operator throws `OutOfMemory` that names the least limit that would have done so far. > 0. Default: no bound.
  MemoryCapOptions& max_overhead(double value) {
    max_overhead_ = value;
    return *this;
  }
  double max_overhead() const { return max_overhead_; }

 private:
  EvictionHeuristic heuristic_ = EvictionHeuristic::kHDtr;
  Bytes min_bytes_ = 512;
  double max_overhead_ = std::numeric_limits<double>::infinity();
};

/// What all caps of the process did since the first of those alive began.
struct MemoryCapStats {
  Bytes limit = 0;            ///< in force, of tensors' bytes
  Bytes process_limit = 0;    ///< in force, of resident bytes; the largest number if there is none
  int64_t evictions = 0;
  Bytes evicted_bytes = 0;    ///< of all evictions together
  int64_t recomputes = 0;     ///< operators that ran again
  int64_t recompute_ns = 0;   ///< time in that
  int64_t policy_ns = 0;    ///< time spent deciding what leaves
};

/// A step under a `MemoryCap` cannot be done: all that can leave memory has left, or it takes longer than `max_overhead`.
class OutOfMemory : public c10::OutOfMemoryError {
 public:
  OutOfMemory(c10::SourceLocation where, std::string message, Bytes floor, Bytes limit, bool is_of_time = false)
      : c10::OutOfMemoryError(where, std::move(message)), floor_(floor), limit_(limit), is_of_time_(is_of_time) {}
  /// A limit of fewer bytes cannot do: those that cannot leave, of the running operator too, and the request. If time was the
  /// cause: by what has run of the step, with what was computed again for a smaller limit counted out.
  Bytes floor() const { return floor_; }
  Bytes limit() const { return limit_; }
  Bytes missing() const { return floor_ - limit_; }
  /// Whether `max_overhead` was the cause: the limit itself could be kept.
  bool is_of_time() const { return is_of_time_; }

 private:
  Bytes floor_, limit_;
  bool is_of_time_;
};

/// While alive, CPU tensors take at most `limit` bytes: what can be computed again leaves memory before the limit would be broken,
/// and comes back when an operator reads it. Results are those of a run without it, to the bit.
///
///     refrain::MemoryCap cap(2_GiB);
///     for (auto& batch : loader) { ... forward, backward, optimizer step, unchanged ... }
///
/// Forward, backward and everything else that runs on this thread is recorded. Tensors that no recorded operator made (parameters,
/// inputs) and gradients of parameters never leave. `checkpoint` regions inside work; what they keep does not leave.
/// A raw pointer is good until the next operator; one to bytes that have left is an error that says so: `PinScope`.
/// Caps nest: the smallest limit holds, with the options of the innermost. Other threads: the limit holds for them too; their
/// operators are recorded only in a `CapThreadScope` or with a cap of their own; else an evicted tensor is an error there.
/// At the end of the last cap everything that has left comes back.
/// Cost: 1 to 4 us an operator: less in a cache that is warm.
class MemoryCap {
 public:
  /// @param limit  bytes >= 0, on the absolute `memory_stats().current`.
  /// @throws InvalidArgument if `limit` or `min_bytes` is negative, or `max_overhead` not above 0.
  explicit MemoryCap(Bytes limit, const MemoryCapOptions& options = {});
  /// Of the process's resident bytes: `Budget::process`, `Budget::available`.
  /// @throws also what `MemoryLimit` of the budget throws.
  explicit MemoryCap(Budget budget, const MemoryCapOptions& options = {});
  ~MemoryCap();
  MemoryCap(const MemoryCap&) = delete;
  MemoryCap& operator=(const MemoryCap&) = delete;

  MemoryCapStats stats() const;

  /// Keeps the bytes of `tensor` in place while its storage lives, after bringing them back.
  void pin(const at::Tensor& tensor);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// While alive, the bytes of tensors stay resident, so that raw pointers to them are good: for `const_data_ptr`, for `torch::save`
/// of what an operator made under the cap, and for threads that are not under it. Without a cap it does nothing.
///
///     { refrain::PinScope pin(module->parameters()); torch::save(module, "model.pt"); }
class PinScope {
 public:
  /// Makes them resident first. Undefined tensors are ignored.
  /// @throws as an operator would that reads the tensors.
  explicit PinScope(at::Tensor tensor);
  explicit PinScope(std::vector<at::Tensor> tensors);
  ~PinScope();
  PinScope(const PinScope&) = delete;
  PinScope& operator=(const PinScope&) = delete;

 private:
  std::vector<at::Tensor> tensors_;
};

/// While alive, operators of this thread run under the caps that are open, as those of the thread that made them do: they are
/// recorded, and what they read is made resident. For worker threads (loaders, environments) that read or write tensors made under
/// a cap; without it an evicted tensor is an error on them. No effect if no cap is open when it is made.
/// Threads: destroyed on the thread that made it. Cost: as `MemoryCap`'s, an operator.
class CapThreadScope {
 public:
  CapThreadScope();
  ~CapThreadScope();
  CapThreadScope(const CapThreadScope&) = delete;
  CapThreadScope& operator=(const CapThreadScope&) = delete;

 private:
  bool joined_ = false;
};

}  // namespace refrain
