#pragma once

#include <string_view>

/// Gives the version of these headers to the preprocessor: `#if REFRAIN_VERSION_MINOR >= 2`.
/// CMakeLists.txt has the same version and refuses to configure if the two differ.
#define REFRAIN_VERSION_MAJOR 0
#define REFRAIN_VERSION_MINOR 1
#define REFRAIN_VERSION_PATCH 0
/// Gives the same as text, "major.minor.patch".
#define REFRAIN_VERSION "0.1.0"

namespace refrain {

/// Returns the version of the headers that the program was compiled with, "0.1.0". Valid until the process ends.
/// Threads: any.
inline std::string_view version() noexcept { return REFRAIN_VERSION; }

}  // namespace refrain
