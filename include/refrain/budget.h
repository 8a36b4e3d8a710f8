#pragma once

#include "refrain/api.h"
#include "refrain/bytes.h"

namespace refrain {

/// How much memory a training may use, and what is counted. Taken by `MemoryBudget`, `plan_step`, `MemoryCap` and
/// `MemoryLimit`.
///
///     // halfway from the lowest achievable peak to the baseline's
///     refrain::MemoryBudget budget(refrain::Budget::fraction(0.5));
///     refrain::MemoryBudget budget(refrain::Budget::bytes(400_MiB));
///     refrain::MemoryCap cap(refrain::Budget::process(450_MiB));  // what a container counts
///     refrain::MemoryCap cap(refrain::Budget::available(0.9));    // no number needed
class REFRAIN_API Budget {
 public:
  enum class Kind {
    kBytes,     ///< bytes that LibTorch's CPU allocator gave out: exact, and fewer than the process takes
    kFraction,  ///< of the peak of a step that is planned
    kProcess,   ///< resident bytes of the process, everything included: libraries, stacks, scratch memory of kernels
  };

  /// Limits the bytes of tensors.
  /// @param limit  bytes >= 0, absolute, as `memory_stats().current`.
  /// @throws InvalidArgument  if `limit` is negative.
  static Budget bytes(Bytes limit);

  /// Limits the peak of a planned step. Only for what plans: a `MemoryCap` or `MemoryLimit` refuses it.
  /// @param part  0 (the lowest peak that a plan can reach) to 1 (the peak of the baseline).
  /// @throws InvalidArgument  if `part` is outside 0 to 1.
  static Budget fraction(double part);

  /// Limits the resident bytes of the process.
  /// @param limit  bytes >= 0, absolute, as `memory_stats().resident`.
  /// @throws InvalidArgument  if `limit` is negative.
  static Budget process(Bytes limit);

  /// Limits the resident bytes of the process to what it has now and a fraction of what it could have besides: the
  /// least that its control groups (v1 or v2) and the system have free. The page cache of files counts as free.
  /// @param part  above 0, at most 1.
  /// @throws InvalidArgument   if `part` is out of range.
  /// @throws EnvironmentError  if the system does not say what is free.
  static Budget available(double part);

  Kind kind() const { return kind_; }
  Bytes bytes() const { return bytes_; }         ///< of `kBytes` and `kProcess`
  double fraction() const { return fraction_; }  ///< of `kFraction`

 private:
  Budget(Kind kind, Bytes bytes, double fraction) : kind_(kind), bytes_(bytes), fraction_(fraction) {}

  Kind kind_;
  Bytes bytes_;
  double fraction_;
};

}  // namespace refrain
