#pragma once

namespace refrain {

/// A TCP port of this machine's loopback address on which nobody listens now. Whoever is to listen there should do so
/// soon: it is not reserved.
/// @throws Error if the system has none.
int free_port();

}  // namespace refrain
