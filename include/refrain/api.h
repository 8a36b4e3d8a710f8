#pragma once

/// Exports a class or function from the shared library, whatever visibility the build has by default. Empty for
/// compilers other than GCC and Clang.
#if defined(__GNUC__) || defined(__clang__)
#define REFRAIN_API __attribute__((visibility("default")))
#else
#define REFRAIN_API
#endif
