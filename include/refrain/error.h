#pragma once

#include <stdexcept>
#include <string>

#include "refrain/api.h"

namespace refrain {

/// The type that every exception of this library can be caught as.
///
/// A message says what was found, what was expected and what to do.
///
/// It is an interface beside the standard's and LibTorch's own: each class below is a `std::exception` too, and those
/// that LibTorch's users catch (`CheckpointError`, `OffloadError`, `DistributedError`, `OutOfMemory`, in
/// refrain/torch_error.h) are `c10::Error`s.
class REFRAIN_API Error {
 public:
  virtual ~Error() = default;
  virtual const char* what() const noexcept = 0;

 protected:
  Error() = default;
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
};

namespace detail {

/// An `Error` that is a `std::runtime_error`.
class REFRAIN_API RuntimeError : public std::runtime_error, public Error {
 public:
  using std::runtime_error::runtime_error;
  const char* what() const noexcept override { return std::runtime_error::what(); }
};

}  // namespace detail

/// A call that could not have worked: wrong size, unknown name, unsupported mode.
class REFRAIN_API InvalidArgument : public detail::RuntimeError {
 public:
  using RuntimeError::RuntimeError;
};

/// A file or text has another format than expected: it is missing, empty, truncated, or of another version.
class REFRAIN_API FormatError : public detail::RuntimeError {
 public:
  using RuntimeError::RuntimeError;
};

/// The system refused to write a file: full disk, no permission, missing folder. The old file is as it was.
class REFRAIN_API FileError : public detail::RuntimeError {
 public:
  using RuntimeError::RuntimeError;
};

/// The machine, LibTorch or another library in the process lacks what is needed; the message names it.
class REFRAIN_API EnvironmentError : public detail::RuntimeError {
 public:
  using RuntimeError::RuntimeError;
};

/// A defect of this library, found by one of its own checks. Please report it.
class REFRAIN_API InternalError : public detail::RuntimeError {
 public:
  using RuntimeError::RuntimeError;
};

}  // namespace refrain
