#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

/// What tests of random programs have in common.
namespace refrain::fuzz {

inline volatile uint64_t current_seed = 0;

/// A crash names the program too.
inline void report_crash(int signal) {
  char text[96];
  const int n = std::snprintf(text, sizeof text, "crashed in the program of seed %llu\n",
                              static_cast<unsigned long long>(current_seed));
  if (n > 0 && write(2, text, static_cast<size_t>(n)) < 0) _exit(1);
  std::signal(signal, SIG_DFL);
  raise(signal);
}

inline int64_t env_number(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::atoll(text);
}

}  // namespace refrain::fuzz
