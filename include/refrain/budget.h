#pragma once

#include "refrain/bytes.h"

namespace refrain {

/// How much memory a `MemoryLimit` or a `MemoryCap` allows, and what it counts.
///
///     refrain::MemoryCap cap(refrain::Budget::process(450_MiB));   // what a container counts
///     refrain::MemoryCap cap(refrain::Budget::available(0.9));     // no number needed
class Budget {
 public:
  enum class Kind {
    kTensors,  ///< bytes that LibTorch's CPU allocator gave out: exact, and less than the process takes
    kProcess,  ///< resident bytes of the process, everything included: libraries, stacks, scratch of kernels
  };

  /// Bytes of tensors, on the absolute `memory_stats().current`. @throws InvalidArgument if negative.
  static Budget tensors(Bytes limit);

  /// Resident bytes, on the absolute `memory_stats().resident`. @throws InvalidArgument if negative.
  static Budget process(Bytes limit);

  /// What the process has resident now and `part` of what it could have beside that: the least of what its control groups (v1 or
  /// v2) and the system have free. The page cache of files counts as free.
  /// @param part  > 0 and <= 1.  @throws InvalidArgument if it is not, Error if the system does not say what is free.
  static Budget available(double part);

  Kind kind() const { return kind_; }
  Bytes bytes() const { return bytes_; }

 private:
  Budget(Kind kind, Bytes bytes) : kind_(kind), bytes_(bytes) {}

  Kind kind_;
  Bytes bytes_;
};

}  // namespace refrain
