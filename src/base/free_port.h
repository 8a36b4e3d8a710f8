#pragma once

namespace refrain {

/// Finds a TCP port of this machine's loopback address on which no process listens. It is not reserved: listen on it
/// soon.
/// @throws EnvironmentError if the system has none.
int free_port();

}  // namespace refrain
