#pragma once

#include <stdexcept>
#include <string>

namespace refrain {

/// Root of everything this library throws on its own behalf. Messages say what was found, what was expected, what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A call that could not have worked: wrong size, unknown name, unsupported mode.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A file or text that is not what it should be: missing, empty, truncated, wrong version.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// Backward cannot bring a value back as it was in forward: something it was computed from has changed.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// Bytes that were offloaded cannot be stored or read back: full disk, failing disk. Parameters are as they were.
class OffloadError : public Error {
 public:
  using Error::Error;
};

/// Processes that train together cannot go on: one did not come, has ended, is late, or brought something else.
class DistributedError : public Error {
 public:
  using Error::Error;
};

}  // namespace refrain
