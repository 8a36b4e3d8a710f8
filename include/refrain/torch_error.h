#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <string>
#include <utility>

#include "refrain/api.h"
#include "refrain/bytes.h"
#include "refrain/error.h"

/// The exceptions that a LibTorch program meets: each is an `Error` of this library and a `c10::Error`.
namespace refrain {
namespace detail {

/// An `Error` that is caught as LibTorch's `Base`, too.
template <typename Base>
class REFRAIN_API TorchError : public Base, public Error {
 public:
  explicit TorchError(std::string message)
      : Base(c10::SourceLocation{__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, std::move(message)) {}
  /// @return the message and its context, without the stack trace that LibTorch's own errors show.
  const char* what() const noexcept override { return Base::what_without_backtrace(); }
};

}  // namespace detail

/// Backward cannot recompute a value: one of its inputs was modified after forward.
class REFRAIN_API CheckpointError : public detail::TorchError<c10::Error> {
 public:
  using TorchError::TorchError;
};

/// Offloaded bytes cannot be stored or read back: full disk, failing disk. Parameters are unchanged.
class REFRAIN_API OffloadError : public detail::TorchError<c10::Error> {
 public:
  using TorchError::TorchError;
};

/// Processes that train together cannot go on: a rank is missing, exited, timed out, or disagrees.
class REFRAIN_API DistributedError : public detail::TorchError<c10::Error> {
 public:
  using TorchError::TorchError;
};

/// Which limit an `OutOfMemory` is about.
enum class OutOfMemoryReason {
  kMemoryLimit,   ///< a `MemoryLimit`: the allocation would exceed it
  kMemoryCap,     ///< a `MemoryCap` or `MemoryBudget`: nothing more can be evicted
  kProcessLimit,  ///< a limit of the process's resident bytes
  kMaxOverhead,   ///< `MemoryCapOptions::max_overhead`: the limit holds, but recomputing takes longer than allowed
};

/// The numbers of an `OutOfMemory`, in bytes: of tensors, or resident ones of the process for `kProcessLimit`.
struct OutOfMemoryNumbers {
  Bytes requested = 0;  ///< by the allocation that was refused
  Bytes in_use = 0;     ///< when it was, what could have been evicted left out
  Bytes limit = 0;      ///< in force
  Bytes min_limit = 0;  ///< see `OutOfMemory::min_limit`
};

/// A limit does not allow an allocation. Nothing was allocated, and the program can go on with what it has.
class REFRAIN_API OutOfMemory : public detail::TorchError<c10::OutOfMemoryError> {
 public:
  OutOfMemory(std::string message, OutOfMemoryReason reason, const OutOfMemoryNumbers& numbers)
      : TorchError(std::move(message)), reason_(reason), numbers_(numbers) {}

  OutOfMemoryReason reason() const { return reason_; }
  const OutOfMemoryNumbers& numbers() const { return numbers_; }
  Bytes requested() const { return numbers_.requested; }  ///< see `OutOfMemoryNumbers`
  Bytes in_use() const { return numbers_.in_use; }        ///< see `OutOfMemoryNumbers`
  Bytes limit() const { return numbers_.limit; }          ///< in force

  /// @return smallest limit, in bytes, under which this allocation could have succeeded: bytes that cannot be evicted,
  ///         those of the running operator included, and the request. For `kMaxOverhead`: the smallest limit under
  ///         which the step so far would have kept `max_overhead`.
  Bytes min_limit() const { return numbers_.min_limit; }
  /// @return bytes by which the limit is below `min_limit`.
  Bytes missing() const { return min_limit() - limit(); }

 private:
  OutOfMemoryReason reason_;
  OutOfMemoryNumbers numbers_;
};

}  // namespace refrain
